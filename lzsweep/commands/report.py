"""`report`: what a study found, as one page with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lzsweep.commands import MLFLOW_FILE, STUDIES_FILE, Storage, Tracking, app
from lzsweep.commands.study import Name, must_exist
from lzsweep.errors import UserError
from lzsweep.sweep.findings import gather
from lzsweep.sweep.finish import renew_report
from lzsweep.sweep.page import REPORT_NAME, write_report
from lzsweep.sweep.report import write_best
from lzsweep.sweep.studies import open_study


@app.command(epilog="Examples:  lzsweep report demo   |   lzsweep report demo -o public/demo")
def report(
    study: Name,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder for it; else `report` in the study's."
        ),
    ] = None,
    storage: Storage = STUDIES_FILE,
    uri: Tracking = MLFLOW_FILE,
) -> None:
    """Draw what a study found until now: one HTML page, its pictures inside and beside it.

    Without -o it also goes to the study's run in MLflow.
    """
    must_exist(storage)
    opened = open_study(storage, study)
    folder = output or Path(opened.record.folder) / REPORT_NAME
    try:
        if output is None:
            page = renew_report(opened, opened.record.server(uri))
        else:
            page = write_report(gather(opened, write_best(opened)), output)
    except OSError as error:
        raise UserError(
            f"a report must go to a writable folder, but {folder}: {error.strerror}; set -o"
        ) from error
    print(page)

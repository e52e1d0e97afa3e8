"""A trial trained again from its record: `lzsweep rerun`."""

from __future__ import annotations

from typing import Annotated

import typer

from lzsweep.commands import STUDIES_FILE, Storage, app
from lzsweep.commands.study import Name, must_exist


@app.command(
    epilog="Examples:  lzsweep rerun demo --trial 3   |   lzsweep rerun demo --trial 3 --seed 2"
)
def rerun(
    study: Name,
    trial: Annotated[int, typer.Option(help="The trial to train again.")],
    seed: Annotated[
        int | None, typer.Option(help="Which of its seeds, with study.seeds; else the first.")
    ] = None,
    storage: Storage = STUDIES_FILE,
) -> None:
    """Train a trial again from its record, into a run of its own, and compare."""
    must_exist(storage)
    from lzsweep.sweep.rerun import train_again
    from lzsweep.sweep.studies import open_study

    train_again(open_study(storage, study), trial, seed)

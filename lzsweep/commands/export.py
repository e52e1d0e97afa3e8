"""`export`: a trained network as a weights file that leelaz plays with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lzsweep.commands import MLFLOW_FILE, STUDIES_FILE, Storage, Tracking, app
from lzsweep.errors import UserError
from lzsweep.imports import import_lightning
from lzsweep.sweep.source import locate
from lzsweep.train.source import is_checkpoint


@app.command(
    epilog="Examples:  lzsweep export demo -o net.txt.gz   |   lzsweep export demo --trial 7"
    " -o net.txt   |   lzsweep export outputs/2026-01-31/12-00-00-123456 -o net.txt.gz   |  "
    " lzsweep export 3f1c0a5e9b2d4c6f8a7b1e2d3c4f5a6b -o net.txt.gz"
)
def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|CKPT|STUDY|MODEL",
            help="A checkpoint or a run's folder, the id of an MLflow run, a study's name, or a"
            " registered model (models:/NAME@champion).",
        ),
    ],
    target: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Weights file; gzipped if it ends in .gz."
        ),
    ],
    trial: Annotated[
        int | None, typer.Option(help="Number of a study's trial; by default the best.")
    ] = None,
    storage: Storage = STUDIES_FILE,
    uri: Tracking = MLFLOW_FILE,
) -> None:
    """Write a network as Leela Zero weights, for leelaz and everything that reads its files."""
    if not target.expanduser().parent.is_dir():
        raise UserError(f"the folder of {target} must exist; make it, or name another file")
    from lzsweep.go.weights import read_weights, write_weights

    with locate(what, storage, uri, trial=trial) as source:
        if is_checkpoint(source):
            import_lightning()  # with torch: many seconds
            from lzsweep.train.export import read_checkpoint

            weights = read_checkpoint(source)
        elif what.startswith("models:/"):
            weights = read_weights(source)
        else:
            raise UserError(f"a checkpoint must be given to export, but {source} is none")
    write_weights(target.expanduser(), weights)
    size = target.expanduser().stat().st_size
    print(f"{target}: {weights.blocks} blocks x {weights.filters} filters, {size:,} bytes")
    print(f"play with it: leelaz -w {target}")

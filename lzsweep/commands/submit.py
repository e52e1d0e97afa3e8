"""`lzsweep submit`: a sweep put on the cluster; nothing of it needs the shell that typed it."""

from __future__ import annotations

from typing import Annotated

import typer

from lzsweep.commands import app, compose_sweep


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Examples:  lzsweep submit sweeps=demo worker.count=8"
    "   |   lzsweep submit --dry-run sweeps=demo hydra.launcher.partition=gpu",
)
def submit(
    context: typer.Context,
    arguments: Annotated[
        list[str], typer.Argument(help="The same as for `lzsweep -m`.", metavar="ARGUMENTS...")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job script and submit nothing.")
    ] = False,
) -> None:
    """Put a sweep on the Slurm cluster and return: its workers do the rest."""
    # A sweep file may choose one; what is set of the launcher fits only the one that will be.
    others = [a for a in arguments if not a.lstrip("+~").startswith("hydra.launcher.")]
    chosen = compose_sweep(others).hydra.runtime.choices["hydra/launcher"]
    launcher = ["hydra/launcher=slurm"] if chosen == "basic" else []
    how = "worker.dry_run=true" if dry_run else "worker.wait=false"
    raise typer.Exit(context.obj(["-m", *arguments, *launcher, how]))

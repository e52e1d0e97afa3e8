"""`list`, `status`, `best`: what was swept, how it goes, what won. `sync`: what MLflow lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lzsweep.commands import Format, Output, app, print_json
from lzsweep.errors import UserError
from lzsweep.sweep.report import (
    count_states,
    describe,
    describe_best,
    make_console,
    train_command,
    trial_table,
    write_best,
)
from lzsweep.sweep.study import STATES, list_studies, open_study
from lzsweep.tracking.delivery import sync as deliver_all

Storage = Annotated[str, typer.Option(envvar="LZSWEEP_STORAGE", help="URL of the study database.")]
Name = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study; see `list`.")]
SQLITE = "sqlite:///lzsweep.db"


@app.command(
    "list",
    epilog="Examples:  lzsweep list   |   lzsweep list --format json",
)
def list_command(storage: Storage = SQLITE, format: Output = Format.table) -> None:
    """List the studies of a database, newest first."""
    _must_exist(storage)
    studies = list_studies(storage)
    data = [
        {
            "study": s.name,
            "n_trials": s.n_trials,
            "states": count_states(s.trials()),
            "best": describe_best(s),
            "folder": s.record.folder,
        }
        for s in studies
    ]
    if format is Format.json:
        print_json(data)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("study", *STATES, "of", "best"):
        table.add_column(column, justify="left" if column in ("study", "best") else "right")
    for study, row in zip(studies, data, strict=True):
        values = "".join(
            f"{m}={v:.4f} "
            for t in study.best()[:1]
            for m, v in zip(study.record.metrics, t.values or (), strict=True)
        )
        counts = [str(n) for n in count_states(study.trials()).values()]
        table.add_row(study.name, *counts, str(row["n_trials"]), values)
    make_console().print(table)


@app.command(epilog="Examples:  lzsweep status demo   |   lzsweep status demo --format json")
def status(study: Name, storage: Storage = SQLITE, format: Output = Format.table) -> None:
    """Show the trials of a study: state, parameters, values, learning curve, folder."""
    _must_exist(storage)
    opened = open_study(storage, study)
    if format is Format.json:
        print_json(describe(opened))
        return
    trials = opened.trials()
    console = make_console()
    console.print(trial_table(opened, trials))
    counts = ", ".join(f"{n} {state}" for state, n in count_states(trials).items() if n)
    console.print(f"{counts or 'no trial yet'}; {opened.n_trials} trials wanted")
    if reason := opened.stopped():
        console.print(f"stopped: {reason}", markup=False)
    for trial in trials:
        if trial.state == "failed":
            log = f"{opened.record.folder}/{trial.number}/trial.log"
            console.print(f"#{trial.number} failed: {trial.reason}; see {log}", markup=False)


@app.command(epilog="Examples:  lzsweep best demo   |   lzsweep best demo --format json")
def best(study: Name, storage: Storage = SQLITE, format: Output = Format.table) -> None:
    """Show the best trial (or the Pareto front) and the command that trains it again."""
    _must_exist(storage)
    opened = open_study(storage, study)
    if format is Format.json:
        print_json(describe_best(opened))
        return
    trials = opened.best()
    if not trials:
        raise UserError(f"a trial must complete to be the best, but none of {study} has yet")
    console = make_console()
    console.print(trial_table(opened, trials))
    if path := write_best(opened):
        console.print(f"train it again: {train_command(path)}", soft_wrap=True)


@app.command(epilog="Examples:  lzsweep sync   |   lzsweep sync /data/me/multirun/demo")
def sync(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders to look in; else multirun and outputs.")
    ] = None,
    uri: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="The MLflow server.")
    ] = "sqlite:///mlflow.db",
) -> None:
    """Deliver to MLflow what runs logged while the server did not answer."""
    roots = folders or [Path("multirun"), Path("outputs")]
    if folders and (missing := [str(f) for f in folders if not f.exists()]):
        raise UserError(f"a folder must exist to be looked in, but {', '.join(missing)} does not")
    summary = deliver_all(roots, uri)
    print(
        f"{len(summary.delivered)} runs delivered, {len(summary.unchanged)} had nothing new,"
        f" {len(summary.left)} left"
    )
    for folder, why in summary.left.items():
        print(f"{folder}: {why}")
    if summary.left:
        raise typer.Exit(1)


def _must_exist(storage: str) -> None:
    # Opening would create an empty database, and a typo would leave a file behind.
    path = storage.removeprefix("sqlite:///")
    if path != storage and not Path(path).exists():
        raise UserError(
            f"the study database must exist, but there is no {path} in {Path.cwd()};"
            " go to the folder where the sweep was started, or set --storage"
        )

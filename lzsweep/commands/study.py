"""Studies looked at (`list`, `status`, `best`, `watch`) and steered (`stop`, `resume`); `sync`."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lzsweep.commands import (
    MLFLOW_FILE,
    STUDIES_FILE,
    Format,
    Output,
    Storage,
    Tracking,
    app,
    print_json,
)
from lzsweep.errors import UserError
from lzsweep.sweep.finish import STOPPED_BY_HAND, finish_study
from lzsweep.sweep.output import last_lines
from lzsweep.sweep.progress import show_progress
from lzsweep.sweep.record import STATES, Trial
from lzsweep.sweep.report import (
    count_states,
    describe,
    describe_best,
    make_console,
    say_again,
    say_failure,
    show_values,
    trial_table,
    write_best,
)
from lzsweep.sweep.runs import close_runs_of_lost
from lzsweep.sweep.seeds import log_of
from lzsweep.sweep.slurm import cancel_pending, queue
from lzsweep.sweep.storage import absolute_url, patiently
from lzsweep.sweep.studies import list_studies, open_study
from lzsweep.sweep.study import Study
from lzsweep.sweep.syntax import quoted
from lzsweep.tracking.client import sqlite_file
from lzsweep.tracking.delivery import sync as deliver_all

Name = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study; see `list`.")]
LOG_LINES = 30


@app.command(
    "list",
    epilog="Examples:  lzsweep list   |   lzsweep list --format json",
)
def list_command(storage: Storage = STUDIES_FILE, format: Output = Format.table) -> None:
    """List the studies of a database, newest first."""
    must_exist(storage)
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
        front = study.best()
        found = f"front of {len(front)}"
        if len(study.record.metrics) == 1:
            found = show_values(study.record.metrics, front[0]) if front else ""
        counts = [str(n) for n in count_states(study.trials()).values()]
        table.add_row(study.name, *counts, str(row["n_trials"]), found)
    make_console().print(table)


@app.command(epilog="Examples:  lzsweep status demo   |   lzsweep status demo --trial 3")
def status(
    study: Name,
    trial: Annotated[
        int | None, typer.Option(help="Show this trial and the end of its own log.")
    ] = None,
    storage: Storage = STUDIES_FILE,
    format: Output = Format.table,
) -> None:
    """Show the trials of a study: state, parameters, values, learning curve, folder."""
    must_exist(storage)
    opened = open_study(storage, study)
    if trial is not None:
        _show_trial(opened, trial, format)
        return
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
    if lost := opened.stale():
        console.print(f"{_say_lost(lost)}; go on with them: lzsweep resume {study}", markup=False)
    if spent := opened.spent(trials):
        word = "ended early" if opened.is_done(trials) else "no further trial begins"
        console.print(f"{word}: {spent}", markup=False)
    for failed in (t for t in trials if t.state == "failed"):
        log = log_of(Path(opened.record.folder) / str(failed.number))
        console.print(say_failure(failed, str(log)), markup=False)


@app.command(epilog="Examples:  lzsweep best demo   |   lzsweep best demo --format json")
def best(study: Name, storage: Storage = STUDIES_FILE, format: Output = Format.table) -> None:
    """Show the best trial (or the Pareto front) and the command that trains it again."""
    must_exist(storage)
    opened = open_study(storage, study)
    if format is Format.json:
        print_json(describe_best(opened))
        return
    trials = opened.best()
    if not trials:
        raise UserError(f"a trial must complete to be the best, but none of {study} has yet")
    console = make_console()
    console.print(trial_table(opened, trials))
    if command := write_best(opened):
        console.print(f"{say_again(opened.record)}: {command}", soft_wrap=True, markup=False)


@app.command(epilog="Examples:  lzsweep sync   |   lzsweep sync /data/me/multirun/demo")
def sync(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders to look in; else multirun and outputs.")
    ] = None,
    uri: Tracking = MLFLOW_FILE,
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


def _say_lost(trials: Sequence[Trial]) -> str:
    numbers = ", ".join(str(t.number) for t in trials)
    return f"the workers of trials {numbers} are gone, whatever their state says"


def _show_trial(study: Study, number: int, format: Format) -> None:
    trial = study.trial(number)
    (described,) = (t for t in describe(study)["trials"] if t["number"] == number)
    if format is Format.json:
        print_json(described)
        return
    console = make_console()
    console.print(trial_table(study, [trial]))
    if trial.reason:
        console.print(f"{trial.ending}: {trial.reason}", markup=False)
    log = log_of(Path(described["folder"]))
    console.print(f"the end of {log}:", soft_wrap=True)
    if lines := last_lines(log, LOG_LINES):
        console.print("\n".join(lines), markup=False, soft_wrap=True)


@app.command(epilog="Examples:  lzsweep watch demo   |   lzsweep watch demo > progress.log")
def watch(study: Name, storage: Storage = STUDIES_FILE) -> None:
    """Show live how a study goes, whoever started it, until it ends; Ctrl-C only leaves."""
    must_exist(storage)
    opened = open_study(storage, study)
    with suppress(KeyboardInterrupt), show_progress(opened, make_console()):
        while not (patiently(opened.is_done) or patiently(opened.stopped)):
            time.sleep(1.0)


@app.command(epilog="Examples:  lzsweep stop demo   |   lzsweep stop demo && lzsweep resume demo")
def stop(study: Name, storage: Storage = STUDIES_FILE, uri: Tracking = MLFLOW_FILE) -> None:
    """Stop a study wherever it runs: its trials write checkpoints, `resume` goes on from there."""
    must_exist(storage)
    opened = open_study(storage, study)
    if opened.is_done():
        print(f"study {study} is complete; there is nothing to stop")
        return
    opened.stop(STOPPED_BY_HAND)
    server, lost = opened.record.server(uri), opened.stale()
    n_running = sum(t.state == "running" for t in opened.trials()) - len(lost)
    is_left = not n_running
    if jobs := opened.jobs():
        cancel_pending(jobs)
        print(f"what waits of job {', '.join(jobs)} was cancelled; what runs ends by itself")
        is_left = not queue(jobs)
    if is_left:  # nobody is there who would close the runs
        close_runs_of_lost(opened, lost, server)
        finish_study(opened, server)
    if lost:
        print(f"{_say_lost(lost)}; they go on from their checkpoints")
    if n_running:
        print(f"{n_running} running trials write their checkpoints and go back to {study};")
    print(f"go on with it: lzsweep resume {study}")


@app.command(epilog="Examples:  lzsweep resume demo   |   lzsweep resume demo study.n_trials=40")
def resume(
    context: typer.Context,
    study: Name,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of this time, such as study.n_trials=40.")
    ] = None,
    storage: Storage = STUDIES_FILE,
) -> None:
    """Go on with a study: the command that began it, typed again in its folder."""
    must_exist(storage)
    opened = open_study(storage, study)
    record = opened.record
    if not Path(record.cwd).is_dir():
        raise UserError(f"a study is resumed where it began, but the folder {record.cwd} is gone")
    # Jobs on other machines need a server's address as it was typed; a file's may have moved.
    is_server = not storage.startswith("sqlite")
    typed = [
        word
        for word in record.command
        if not word.startswith("study.storage=") or (is_server and storage in word)
    ]
    if not any(word.startswith("study.name=") for word in typed):
        typed.append(f"study.name={quoted(study)}")
    # What it may spend was perhaps changed since.
    command = _each_key_once([*typed, *opened.budget.overrides, *(overrides or [])])
    print("lzsweep -m", shlex.join(command), flush=True)
    # Not as a word, because an address may hold a password.
    os.environ["LZSWEEP_STORAGE"] = absolute_url(storage)
    os.chdir(record.cwd)
    raise typer.Exit(context.obj(["-m", *command]))


def _each_key_once(words: Sequence[str]) -> list[str]:
    """The words without those whose key is set again later, which is the one that counts."""
    last = {word.partition("=")[0]: n for n, word in enumerate(words)}
    return [word for n, word in enumerate(words) if last[word.partition("=")[0]] == n]


def must_exist(storage: str) -> None:
    """Refuse a study database that is not there, instead of making an empty one."""
    file = sqlite_file(storage)
    if file and not file.exists():
        raise UserError(
            f"the study database must exist, but there is no {file.name} in {file.parent};"
            " go to the folder where the sweep was started, or set --storage"
        )

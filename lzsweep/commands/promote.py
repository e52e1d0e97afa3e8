"""`promote`: the winner of a study into MLflow's model registry."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lzsweep.commands import MLFLOW_FILE, STUDIES_FILE, Storage, Tracking, app
from lzsweep.commands.study import Name, must_exist
from lzsweep.errors import UserError
from lzsweep.imports import import_lightning
from lzsweep.sweep.report import show_params
from lzsweep.sweep.source import choose_trial, say_state, trial_source
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.study import Study
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.registry import CHAMPION, champion_of, model_name, register
from lzsweep.tracking.runs import check_server

if TYPE_CHECKING:
    from lzsweep.sweep.record import Trial


@app.command(
    epilog="Examples:  lzsweep promote demo   |   lzsweep promote demo --trial 7 --name go-small"
)
def promote(
    study: Name,
    trial: Annotated[
        int | None, typer.Option(help="Number of the trial; by default the best.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name in the registry; by default the study's.")
    ] = None,
    storage: Storage = STUDIES_FILE,
    uri: Tracking = MLFLOW_FILE,
) -> None:
    """Register a trial's network in MLflow and make it the champion."""
    must_exist(storage)
    opened = open_study(storage, study)
    chosen = choose_trial(opened, trial)
    # The study notes the run of a trial only if it was delivered before the trial's end.
    run_id = chosen.run_id or run_id_of(Path(opened.record.folder) / str(chosen.number))
    if run_id is None:
        raise UserError(
            f"a trial must have a run in MLflow to be promoted, but trial {chosen.number} of"
            f" {study} has none; the study was made with logger=none, or `lzsweep sync` is due"
        )
    where = opened.record.server(uri)
    check_server(where)
    known = model_name(name or study)
    address = f"models:/{known}@{CHAMPION}"
    if (champion := champion_of(where, known)) and champion[1] == run_id:
        print(f"trial {chosen.number} is {address} already, version {champion[0]}")
        return
    version = _register(opened, replace(chosen, run_id=run_id), known, where)
    if note := _note(opened, chosen):
        print(f"note: {note}")
    print(f"trial {chosen.number} is {address} now, version {version}")
    print(f"export it: lzsweep export {address} -o net.txt.gz")
    print(f'load it:   mlflow.pyfunc.load_model("{address}")')


def _note(study: Study, trial: Trial) -> str:
    """What whoever crowns a trial may not know of it, if it is none of the best."""
    best = [one.number for one in study.best()]
    if trial.number in best:
        return ""
    state = "is not the best" if trial.state == "complete" else say_state(trial)
    numbers = ", ".join(f"#{number}" for number in best)
    others = (
        f"the best {'is' if len(best) == 1 else 'are'} {numbers}" if best else "none completed"
    )
    return f"trial {trial.number} {state}; {others}"


def _register(study: Study, trial: Trial, name: str, uri: str) -> str:
    with tempfile.TemporaryDirectory(prefix="lzsweep-") as scratch:
        source = trial_source(study, trial, uri, Path(scratch))
        import_lightning()  # with torch: many seconds
        from lzsweep.train.export import read_checkpoint
        from lzsweep.train.player import CONFIG_NAME, save_model

        config = Path(study.record.folder) / str(trial.number) / CONFIG_NAME
        folder = Path(scratch) / "model"
        save_model(folder, read_checkpoint(source), config if config.exists() else None)
        tags = {
            "lzsweep.study": study.name,
            "lzsweep.trial": str(trial.number),
            "lzsweep.state": trial.state,
            **dict(_results(study, trial)),
        }
        return register(uri, name, str(trial.run_id), folder, tags, _describe(study, trial))


def _results(study: Study, trial: Trial) -> list[tuple[str, Any]]:
    # One that did not complete got as far as the end of its curve.
    values = trial.values or tuple(trial.curve.values())[-1:]
    return [(m, f"{v:.6g}") for m, v in zip(study.record.metrics, values, strict=False)]


def _describe(study: Study, trial: Trial) -> str:
    results = " ".join(f"{metric}={value}" for metric, value in _results(study, trial))
    return (
        f"Trial {trial.number} of the study `{study.name}`: {results or say_state(trial)}\n\n"
        f"`{show_params(trial.params)}`"
    )

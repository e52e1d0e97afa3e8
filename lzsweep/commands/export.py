"""`export`: a trained network as a weights file that leelaz plays with."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lzsweep.commands import MLFLOW_FILE, STUDIES_FILE, Storage, Tracking, app
from lzsweep.config import BEST_CHECKPOINT, WEIGHTS_FILE
from lzsweep.errors import DataError, UserError
from lzsweep.train.source import find_source, is_checkpoint

if TYPE_CHECKING:
    from lzsweep.sweep.record import Trial
    from lzsweep.sweep.study import Study

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_SQLITE = "sqlite:///"
_MODEL = "models:/"


@app.command(
    epilog="Examples:  lzsweep export demo -o net.txt.gz   |   lzsweep export demo --trial 7"
    " -o net.txt   |   lzsweep export outputs/2026-01-31/12-00-00 -o net.txt.gz   |   lzsweep"
    " export 3f1c0a5e9b2d4c6f8a7b1e2d3c4f5a6b -o net.txt.gz"
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

    with _checkpoint(what, trial, storage, uri) as source:
        if is_checkpoint(source):
            from lzsweep.train.export import read_checkpoint  # torch: many seconds

            weights = read_checkpoint(source)
        elif what.startswith(_MODEL):
            weights = read_weights(source)
        else:
            raise UserError(f"a checkpoint must be given to export, but {source} is none")
    write_weights(target.expanduser(), weights)
    size = target.expanduser().stat().st_size
    print(f"{target}: {weights.blocks} blocks x {weights.filters} filters, {size:,} bytes")
    print(f"play with it: leelaz -w {target}")


@contextmanager
def _checkpoint(what: str, trial: int | None, storage: str, uri: str) -> Iterator[Path]:
    """Find the checkpoint that is meant; one that is downloaded lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="lzsweep-") as scratch:
        path = Path(what).expanduser()
        if what.startswith(_MODEL):
            yield _of_model(what, uri, Path(scratch))
        elif path.exists() or path.suffix == ".ckpt" or _is_nowhere(what, storage):
            if trial is not None:
                raise UserError(f"--trial belongs to a study's name, but {what} is a path")
            yield find_source(what)
        elif _RUN_ID.fullmatch(what):
            yield _download(what, uri, Path(scratch))
        else:
            yield _of_study(what, trial, storage, uri, Path(scratch))


def _is_nowhere(what: str, storage: str) -> bool:
    """Whether a word with a `/` in it, which may be a path, names no study."""
    if "/" not in what:
        return False
    path = storage.removeprefix(_SQLITE)
    if path != storage and not Path(path).exists():
        return True
    from lzsweep.sweep.studies import find_study

    return find_study(storage, what) is None


def _of_study(name: str, number: int | None, storage: str, uri: str, scratch: Path) -> Path:
    path = storage.removeprefix(_SQLITE)
    if path != storage and not Path(path).exists():
        raise UserError(
            f"{name} must be a checkpoint, a run's folder, an MLflow run or a study, but nothing"
            f" here has this name, and there is no study database {path}; go to where it lies, or"
            " set --storage"
        )
    from lzsweep.sweep.studies import open_study

    study = open_study(storage, name)
    return trial_source(study, choose_trial(study, number), uri, scratch)


def trial_source(study: Study, trial: Trial, uri: str, scratch: Path) -> Path:
    """A trial's best checkpoint: in its folder, else downloaded from its run.

    Args:
        study: of the trial.
        trial: a finished one.
        uri: the MLflow server, where the study does not name it with its password.
        scratch: folder for what is downloaded.

    Raises:
        DataError: it is not here, and there is no run that has it.
        UserError: the run cannot be had.
    """
    try:
        return find_source(Path(study.record.folder) / str(trial.number))
    except DataError:
        # Trained on another machine, or cleared away; MLflow keeps the best.
        if trial.run_id is None:
            raise
    recorded = study.record.tracking_uri
    # What is recorded has no passwords; then who asks must say where the server is.
    return _download(trial.run_id, uri if "***" in recorded else recorded, scratch)


def choose_trial(study: Study, number: int | None) -> Trial:
    """The trial of a number, else the best one.

    Raises:
        UserError: there is none, or there are several best ones.
    """
    trials = {trial.number: trial for trial in study.trials()}
    if number is not None:
        if number not in trials:
            there = ", ".join(map(str, sorted(trials))) or "none yet"
            raise UserError(f"--trial must be a trial of {study.name} ({there}), but got {number}")
        return trials[number]
    best = study.best()
    if not best:
        raise UserError(f"a trial must complete to be the best, but none of {study.name} has yet")
    if len(best) > 1:
        numbers = ", ".join(str(trial.number) for trial in best)
        raise UserError(f"{study.name} has several best trials; choose one by --trial: {numbers}")
    return best[0]


def _of_model(model: str, uri: str, scratch: Path) -> Path:
    from lzsweep.tracking.registry import download_from_model
    from lzsweep.tracking.runs import check_server

    check_server(uri)
    return download_from_model(uri, model, f"data/model-data/{WEIGHTS_FILE}", scratch)


def _download(run_id: str, uri: str, scratch: Path) -> Path:
    from lzsweep.tracking.client import Gone, connect, judge, reason, redact
    from lzsweep.tracking.runs import check_server

    check_server(uri)
    try:
        client = connect(uri)
        client.get_run(run_id)
        return Path(client.download_artifacts(run_id, BEST_CHECKPOINT, str(scratch)))
    except Exception as error:  # MLflow raises what its many stores raise
        why = judge(error)
        if isinstance(why, Gone):
            raise UserError(f"there is no run {run_id} at {redact(uri)}") from error
        raise UserError(
            f"run {run_id} at {redact(uri)} must have the artifact {BEST_CHECKPOINT}, but it"
            f" cannot be had: {reason(error)}"
        ) from error

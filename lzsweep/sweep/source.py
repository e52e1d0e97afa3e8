"""Networks by whatever names them: a file, a run's folder, an MLflow run, a study, a model."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from lzsweep.config import BEST_CHECKPOINT, WEIGHTS_FILE
from lzsweep.errors import DataError, LzsweepError, UserError
from lzsweep.train.source import find_source

if TYPE_CHECKING:
    from lzsweep.sweep.record import Trial
    from lzsweep.sweep.space import Space
    from lzsweep.sweep.study import Study

INIT_FROM = "network.init_from"
KEPT = Path("outputs/networks")
"""Where networks are kept that a training started from by name."""

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MODEL = "models:/"
_SUFFIXES = (".ckpt", ".txt", ".gz")


class _NoNetwork(UserError):
    """A run is there, but no network in it."""


@contextmanager
def locate(what: str, storage: str, uri: str, *, trial: int | None = None) -> Iterator[Path]:
    """Find the network that is meant; one that is downloaded lives as long as the block.

    Args:
        what: a weights file, a checkpoint or a run's folder, the id of an MLflow run, a study's
            name, or a registered model (`models:/NAME@champion`).
        storage: URL of the study database.
        uri: the MLflow server.
        trial: number of a study's trial; by default the best.

    Returns:
        A checkpoint, or a weights file.

    Raises:
        UserError: nothing has this name, or what has it cannot be had.
        DataError: the path has no network.
    """
    with tempfile.TemporaryDirectory(prefix="lzsweep-") as scratch:
        if _is_path(what, storage):
            if trial is not None:
                raise UserError(f"--trial belongs to a study's name, but {what} is a path")
            yield find_source(what)
        elif what.startswith(_MODEL):
            yield _of_model(what, uri, Path(scratch))
        elif _RUN_ID.fullmatch(what):
            yield _download(what, uri, Path(scratch))
        else:
            yield _of_study(what, trial, storage, uri, Path(scratch))


def keep(what: str, storage: str, uri: str) -> str:
    """A path for `network.init_from` that no later training changes.

    What a study's or a model's name means changes, and a trial's process asks no server. So what
    is named is copied, under a name made of its content: all trials of a sweep, and whoever goes
    on with it or trains one again, start from the same.

    Raises:
        UserError: as `locate`, for what is no path.
    """
    if _is_path(what, storage):
        return what
    with locate(what, storage, uri) as source:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        kept = KEPT / f"{digest.hexdigest()}{''.join(source.suffixes)}"
        if not kept.exists():
            KEPT.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=KEPT) as aside:
                Path(shutil.copy(source, aside)).replace(kept)
    return str(kept)


def settle(cfg: DictConfig) -> None:
    """Let `network.init_from` of a training be a path, whatever it names.

    Raises:
        UserError: as `locate`.
    """
    if what := OmegaConf.select(cfg, INIT_FROM):
        cfg.network.init_from = keep(str(what), cfg.study.storage, cfg.tracking.uri)


def settle_space(space: Space, cfg: DictConfig) -> tuple[Space, list[str]]:
    """Let `network.init_from` of all trials of a sweep be a path, whatever it names.

    Returns:
        The space, and what is wrong with it.
    """
    from lzsweep.sweep.syntax import read_value

    fixed: list[str] = []
    problems: list[str] = []
    for override in space.fixed:
        key, _, text = override.partition("=")
        if key.lstrip("+") != INIT_FROM or not isinstance(what := read_value(text), str):
            fixed.append(override)
            continue
        try:
            path = keep(what, cfg.study.storage, cfg.tracking.uri)
        except LzsweepError as error:
            problems.append(f"{INIT_FROM}: {error}")
        else:
            fixed.append(override if path == what else f"{key}={path}")
    return replace(space, fixed=tuple(fixed)), problems


def _is_path(what: str, storage: str) -> bool:
    path = Path(what).expanduser()
    if what.startswith(_MODEL):
        return False
    return path.exists() or path.suffix in _SUFFIXES or _is_nowhere(what, storage)


def _is_nowhere(what: str, storage: str) -> bool:
    """Whether a word with a `/` in it, which may be a path, names no study."""
    if "/" not in what:
        return False
    from lzsweep.sweep.storage import is_there
    from lzsweep.sweep.studies import find_study

    return not is_there(storage) or find_study(storage, what) is None


def _of_study(name: str, number: int | None, storage: str, uri: str, scratch: Path) -> Path:
    from lzsweep.sweep.storage import is_there, shown_url
    from lzsweep.sweep.studies import open_study

    if not is_there(storage):
        raise UserError(
            f"{name} must be a checkpoint, a run's folder, an MLflow run or a study, but nothing"
            f" here has this name, and there is no study database {shown_url(storage)}; go to"
            " where it lies, or set --storage (of a training: study.storage)"
        )
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
        UserError: the trial has no network, or the run cannot be had.
    """
    try:
        try:
            return find_source(Path(study.record.folder) / str(trial.number))
        except DataError:
            # Trained on another machine, or cleared away; MLflow keeps the best.
            if trial.run_id is None:
                raise
        return _download(trial.run_id, study.record.server(uri), scratch)
    except (DataError, _NoNetwork) as error:
        if trial.state == "complete":
            raise
        raise UserError(
            f"a trial must have a network to be taken along, but trial {trial.number} of"
            f" {study.name} {say_state(trial)} and has none; see `lzsweep status {study.name}"
            f" --trial {trial.number}`"
        ) from error


def say_state(trial: Trial) -> str:
    """How it stands with a trial, after its name: `failed (ValueError: no)`, `was pruned`."""
    why = "".join(f" ({line})" for line in trial.reason.splitlines()[:1])
    if trial.state == "failed":
        return f"failed{why}"
    return f"{'is' if trial.state in ('running', 'waiting') else 'was'} {trial.state}"


def choose_trial(study: Study, number: int | None) -> Trial:
    """The trial of a number, else the best one.

    Raises:
        UserError: there is none, or there are several best ones.
    """
    if number is not None:
        return study.trial(number)
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
    from lzsweep.tracking.client import Gone, classify, connect, reason, redact
    from lzsweep.tracking.runs import check_server

    check_server(uri)
    where = f"run {run_id} at {redact(uri)}"
    try:
        client = connect(uri)
        client.get_run(run_id)
        listed = client.list_artifacts(run_id, str(Path(BEST_CHECKPOINT).parent))
        if any(file.path == BEST_CHECKPOINT for file in listed):
            return Path(client.download_artifacts(run_id, BEST_CHECKPOINT, str(scratch)))
    except Exception as error:  # MLflow raises what its many stores raise
        why = classify(error)
        if isinstance(why, Gone):
            raise UserError(f"there is no {where}") from error
        raise UserError(
            f"{where} must have the artifact {BEST_CHECKPOINT}, but it cannot be had:"
            f" {reason(error)}"
        ) from error
    raise _NoNetwork(
        f"{where} must have the artifact {BEST_CHECKPOINT}, but has none; name one that completed"
    )

"""The MLflow run of a trial: what it says, and its end where no worker could note that."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lzsweep.config import ARTIFACTS, BEST_CHECKPOINT
from lzsweep.sweep.record import Record, Trial
from lzsweep.sweep.seeds import open_seeds
from lzsweep.sweep.study import Study
from lzsweep.sweep.trial import LOG_NAME, Kind
from lzsweep.tracking.delivery import deliver_or_warn
from lzsweep.tracking.journal import JOURNAL_NAME, Journal, Status, read_records
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.runs import changed_code, code_version

STATUS: Mapping[Kind, Status] = {
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "infeasible": "FAILED",
    "error": "FAILED",
    "stopped": "KILLED",
    "killed": "KILLED",
}
"""What MLflow says of a run by how its training ended."""

_logger = logging.getLogger(__name__)


def run_name(trial: Trial, seed: int | None = None) -> str:
    """The run's name in MLflow: `#012 big lr=0.0034`, for one of its seeds `... seed=3`.

    MLflow's pages cut names off, so of a key there is only its last part where that is clear.
    """
    n_ends = Counter(key.rpartition(".")[2] for key in trial.params)
    names = {k: end if n_ends[end := k.rpartition(".")[2]] == 1 else k for k in trial.params}
    parts = [
        str(v) if isinstance(v, str) else f"{names[k]}={_short(v)}"
        for k, v in trial.params.items()
    ]
    return " ".join([f"#{trial.number:03d}", *parts, *([] if seed is None else [f"seed={seed}"])])


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def run_tags(study: str, trial: Trial, worker: str, folder: Path) -> dict[str, str]:
    """The tags by which a trial's run is found."""
    return {
        "lzsweep.study": study,
        "lzsweep.trial": str(trial.number),
        "lzsweep.attempt": str(trial.attempt),
        "lzsweep.worker": worker,
        "lzsweep.log": str(folder / LOG_NAME),
    }


def ending_tags(ending: str, reason: str) -> dict[str, str]:
    """The tags that say how a training ended."""
    return {"lzsweep.ending": ending, "lzsweep.reason": reason}


def code_tags(record: Record) -> dict[str, str]:
    """Tags of a trial whose code is not the one that the study began with, which is warned of."""
    changed = changed_code(record.code)
    if changed is None:
        return {}
    _logger.warning("the study began with %s, this worker runs %s", *changed)
    return {"lzsweep.code.study_began_with": changed[0]}


def settle_runs(study: Study, uri: str) -> None:
    """End the runs of finished trials that are still open, and make those that are missing.

    On a full disk a worker can note neither; the study knows how the trials ended, and as soon
    as there is room their runs do.
    """
    for trial in study.trials():
        folder = Path(study.record.folder) / str(trial.number)
        journal = folder / JOURNAL_NAME
        is_gone = not folder.is_dir() or (trial.run_id and not journal.exists())
        if not trial.is_finished or is_gone or _is_settled(journal):
            continue
        try:
            _settle(study, trial, folder)
        except OSError as error:
            _logger.warning(
                "the run of trial %d is not ended yet: %s; make room there and type the same"
                " command again",
                trial.number,
                error,
            )
        else:
            deliver_or_warn(folder, uri)


def close_runs_of_lost(study: Study, lost: Sequence[Trial], uri: str) -> None:
    """End the runs of trials whose workers are gone, where nobody is left to take them up.

    Whoever resumes the study takes them up, and their runs with them.
    """
    for trial in lost:
        folder = Path(study.record.folder) / str(trial.number)
        reason = f"worker {trial.worker or 'unknown'} was lost"
        for run in (*open_seeds(folder), folder):
            if (run / JOURNAL_NAME).exists():
                with Journal(run) as journal:
                    journal.tags({"lzsweep.reason": reason})
                    journal.end("KILLED")
                deliver_or_warn(run, uri)


def reveal_runs(study: Study, uri: str) -> None:
    """See that the run of each trial is made: a trial may end before MLflow has heard of it.

    What names all runs, such as a link that compares them, can be written then, and whoever has
    not the trials' folders finds the runs by the study.
    """
    folder = Path(study.record.folder)
    trials = {folder / str(trial.number): trial for trial in study.trials()}
    for run in (folder, *trials):  # the study's own first, which the others are below
        is_unknown = (run / JOURNAL_NAME).exists() and run_id_of(run) is None
        if is_unknown and not deliver_or_warn(run, uri):
            break  # the server is away; the others would wait for nothing
    for run, trial in trials.items():
        if trial.is_finished and trial.run_id is None and (run_id := run_id_of(run)):
            study.name_run(trial, run_id)


def _is_settled(journal: Path) -> bool:
    """Whether after its end there are but files; looks at nothing else, for journals are long."""
    with suppress(OSError), journal.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        for line in reversed(file.read().rstrip().split(b"\n")):
            if not line.startswith(b'{"type":"artifact"'):
                return line.startswith(b'{"type":"end"')
    return False


def _settle(study: Study, trial: Trial, folder: Path) -> None:
    for seed in open_seeds(folder):
        with Journal(seed) as journal:
            journal.end("FAILED")
    with Journal(folder) as journal:
        if journal.status is None:
            journal.start(
                experiment=_experiment(folder.parent),
                name=run_name(trial),
                params=trial.params,
                tags={
                    **code_version(),
                    **run_tags(study.name, trial, str(trial.worker), folder),
                    "lzsweep.folder": str(folder),
                },
                parent_folder=folder.parent,
            )
        if journal.status == "RUNNING":
            if trial.state == "complete" and (folder / BEST_CHECKPOINT).exists():
                journal.artifact(BEST_CHECKPOINT, ARTIFACTS[BEST_CHECKPOINT])
            journal.tags(ending_tags(str(trial.ending), trial.reason))
            journal.end("FAILED" if trial.state == "failed" else "FINISHED")


def _experiment(study: Path) -> str:
    start, _ = next(read_records(study / JOURNAL_NAME))
    return str(start["run"]["experiment"])

"""The trainings of one trial where `study.seeds` repeats each point: their folders, their means.

Each seed trains in `TRIAL/seedN`, a run of its own below the trial's run. The trial's own folder
and run hold what is judged: the means over the seeds, and the network of the best of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from lzsweep.config import ARTIFACTS, best_by
from lzsweep.files import lend_whole
from lzsweep.sweep.record import Record, SeedResult
from lzsweep.sweep.trial import LOG_NAME, End
from lzsweep.tracking.journal import JOURNAL_NAME, Journal, read_records

_SYSTEM = "system/"  # metrics of a machine have no mean over trainings

Curves = Mapping[str, Mapping[int, float]]


def seed_folder(trial: Path, seed: int) -> Path:
    """Where a trial trains with a seed."""
    return trial / f"seed{seed}"


def log_of(trial: Path) -> Path:
    """The log of a trial: its own, or that of the seed which wrote last."""
    logs = list(trial.glob(f"seed*/{LOG_NAME}"))
    return max(logs, key=lambda log: log.stat().st_mtime) if logs else trial / LOG_NAME


def begun_seeds(trial: Path) -> list[int]:
    """The seeds with which a trial was trained, complete or not."""
    return sorted(int(path.name.removeprefix("seed")) for path in trial.glob("seed*"))


def open_seeds(trial: Path) -> list[Path]:
    """Folders of the seeds whose runs nobody has ended."""
    found = []
    for path in sorted(trial.glob(f"seed*/{JOURNAL_NAME}")):
        with Journal(path.parent) as journal:
            if journal.status == "RUNNING":
                found.append(path.parent)
    return found


def sum_up(results: Sequence[SeedResult], metrics: Sequence[str]) -> End:
    """The end of a trial all of whose seeds are complete.

    Args:
        results: one or more.
        metrics: the objectives; `METRIC_sd` is their standard deviation over the seeds.
    """
    values = [fmean(column) for column in zip(*(r.values for r in results), strict=True)]
    common = set.intersection(*(set(r.metrics) for r in results))
    means = {name: fmean(r.metrics[name] for r in results) for name in sorted(common)}
    if len(results) > 1:
        columns = zip(*(r.values for r in results), strict=True)
        means |= {f"{m}_sd": stdev(c) for m, c in zip(metrics, columns, strict=True)}
    return End(
        "complete",
        values=tuple(values),
        metrics=means,
        train_s=sum(r.train_s for r in results),
    )


def cut_short(end: End, seed: int, done: Sequence[SeedResult]) -> End:
    """The end of a trial by the end of one of its seeds, others being complete."""
    reason = end.reason if end.kind in ("stopped", "killed") else f"seed {seed}: {end.reason}"
    return replace(end, reason=reason, train_s=end.train_s + sum(r.train_s for r in done))


def best_seed(results: Mapping[int, SeedResult], record: Record) -> int | None:
    """The seed with the best network, by what decides which checkpoint of a training is best."""
    metrics, directions = list(record.metrics), list(record.directions)
    metric, direction = best_by({"metric": metrics, "direction": directions})
    sign = 1 if direction == "minimize" else -1
    return min(
        results,
        key=lambda seed: sign * results[seed].metrics.get(metric, sign * math.inf),
        default=None,
    )


def write_means(trial: Path, seeds: Sequence[Path], last: Mapping[str, float]) -> None:
    """Note the means over the seeds in the trial's journal, at the steps that all have reached.

    Args:
        trial: the trial's folder.
        seeds: folders of the seeds that were begun.
        last: metrics known at the end only, noted at the last such step.
    """
    curves = [_read_curves(folder) for folder in seeds]
    rows: dict[int, dict[str, float]] = {}
    for name in sorted(set.intersection(*(set(c) for c in curves))):
        for step in set.intersection(*(set(c[name]) for c in curves)):
            rows.setdefault(step, {})[name] = fmean(c[name][step] for c in curves)
    with Journal(trial) as journal:
        for step in sorted(rows):
            journal.metrics(step, rows[step])
        if last:
            journal.metrics(max(rows, default=0), last)


def _read_curves(folder: Path) -> Curves:
    curves: dict[str, dict[int, float]] = {}
    for record, _ in read_records(folder / JOURNAL_NAME):
        if record.get("type") == "metrics":
            for name, value in record["values"].items():
                if not name.startswith(_SYSTEM):
                    curves.setdefault(name, {}).setdefault(record["step"], float(value))
    return curves


def lend_best(trial: Path, seed: Path) -> None:
    """Give a trial the checkpoint and the weights of one of its seeds."""
    for name in ARTIFACTS:
        if (seed / name).exists():
            lend_whole(seed / name, trial / name)

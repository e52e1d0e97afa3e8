"""What a study found, as plain data that another process can draw: no database, no Optuna."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lzsweep.sweep.record import Record, Trial
from lzsweep.sweep.space import Space
from lzsweep.sweep.study import Study
from lzsweep.tracking.journal import JOURNAL_NAME, read_records


@dataclass(frozen=True)
class Findings:
    """A study at one moment.

    Attributes:
        name: of the study.
        record: what it sweeps.
        n_trials: its budget.
        trials: in the order of their numbers.
        attempts: every try at a trial, retries and the lost ones too.
        best: numbers of the best trial or of the Pareto front.
        stopped: why it was stopped early, or empty.
        again: the command that trains the best one again, or empty.
    """

    name: str
    record: Record
    n_trials: int
    trials: tuple[Trial, ...]
    attempts: tuple[Trial, ...]
    best: tuple[int, ...]
    stopped: str
    again: str

    @property
    def fingerprint(self) -> str:
        """Changes whenever a trial began or ended."""
        facts = [(t.number, t.attempt, t.state, t.values) for t in self.attempts]
        text = json.dumps([self.name, self.n_trials, self.stopped, facts])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def completed(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def command(self) -> str:
        """The command that began the study, as it was typed."""
        return shlex.join(["lzsweep", "-m", *self.record.command])

    def is_log(self, name: str) -> bool:
        """Whether a parameter was searched on a logarithmic scale."""
        parameters = Space.from_json(self.record.tree, ()).parameters
        return any(p.key == name and getattr(p.distribution, "log", False) for p in parameters)

    def names(self) -> list[str]:
        """The parameters as people see them, in the order of the space."""
        found = dict.fromkeys(name for trial in self.trials for name in trial.params)
        return list(dict.fromkeys([*(n for n in self.record.space if n in found), *found]))

    def curve(self, trial: Trial, n: int = 0) -> dict[int, float]:
        """An objective over the validations of a trial (of several ones, from its journal)."""
        if len(self.record.metrics) == 1:
            return dict(trial.curve)
        path = Path(self.record.folder) / str(trial.number) / JOURNAL_NAME
        metric = self.record.metrics[n]
        records = [r for r, _ in read_records(path) if r.get("type") == "metrics"]
        return {
            r["step"]: float(r["values"][metric]) for r in records if metric in r.get("values", {})
        }


def gather(study: Study, again: str = "") -> Findings:
    """Read a study once."""
    attempts = tuple(study.attempts())
    return Findings(
        name=study.name,
        record=study.record,
        n_trials=study.n_trials,
        trials=tuple(study.trials()),
        attempts=attempts,
        best=tuple(trial.number for trial in study.best()),
        stopped=study.stopped(),
        again=again,
    )


def utilisation(attempts: Sequence[Trial]) -> float | None:
    """Busy slot time / (slots x time), from each slot's first trial to its worker's last end.

    None while no attempt has ended. A pause between two commands belongs to no worker.
    """
    ended = [
        (t.worker, t.worker.rpartition("/")[0], t.started, t.finished)
        for t in attempts
        if t.worker and t.started and t.finished
    ]
    busy_s = sum((finished - started).total_seconds() for *_, started, finished in ended)
    span_s = 0.0
    for slot, worker in {(slot, worker) for slot, worker, *_ in ended}:
        began = min(started for s, _, started, _ in ended if s == slot)
        last = max(finished for _, w, _, finished in ended if w == worker)
        span_s += (last - began).total_seconds()
    return busy_s / span_s if span_s else None

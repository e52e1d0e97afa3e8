"""The budget of a study: a total for all workers together, however often the study is resumed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lzsweep.errors import UserError
from lzsweep.sweep.record import Trial


@dataclass(frozen=True)
class Budget:
    """What a study may spend; None sets no limit.

    Attributes:
        n_trials: finished trials: complete, pruned and failed ones.
        max_time_s: seconds since the study was created.
        max_device_hours: hours of a whole device, all attempts together.
        target: a value of the first objective that is good enough.
        patience: finished trials without a better first objective.
    """

    n_trials: int
    max_time_s: float | None = None
    max_device_hours: float | None = None
    target: float | None = None
    patience: int | None = None

    @property
    def overrides(self) -> list[str]:
        """The same as words of a command line; none for what has no limit."""
        limits = {("max_time" if k == "max_time_s" else k): v for k, v in vars(self).items()}
        return [f"study.{key}={limit}" for key, limit in limits.items() if limit is not None]

    def spent(
        self,
        trials: Sequence[Trial],
        directions: Sequence[str],
        age_s: float,
        device_hours: float,
    ) -> str:
        """Which limit but `n_trials` is reached, in words; empty while none is."""
        if self.max_time_s is not None and age_s >= self.max_time_s:
            return f"study.max_time of {self.max_time_s:g} s is over"
        if self.max_device_hours is not None and device_hours >= self.max_device_hours:
            return f"study.max_device_hours of {self.max_device_hours:g} are spent"
        if self.target is None and self.patience is None:
            return ""
        sign = 1 if directions[0] == "minimize" else -1
        done = sorted(
            (t for t in trials if t.is_finished and t.finished), key=lambda t: str(t.finished)
        )
        scores = [sign * t.values[0] if t.values else float("inf") for t in done]
        best = min(scores, default=float("inf"))
        if self.target is not None and best <= sign * self.target:
            return f"study.target of {self.target:g} is reached"
        if self.patience is not None and best < float("inf"):
            n_since = len(scores) - 1 - scores.index(best)
            if n_since >= self.patience:
                return f"study.patience is at its end: {n_since} trials without a better one"
        return ""


def parse_time(text: str | float) -> float:
    """Seconds of a time as Lightning writes it (`DD:HH:MM:SS`, `HH:MM:SS`) or of a number.

    Raises:
        UserError: it is neither.
    """
    if re.fullmatch(r"\d+(\.\d+)?", str(text)):
        return float(text)
    if re.fullmatch(r"(\d+:)?\d+:\d+:\d+", str(text)):
        parts = [int(part) for part in str(text).split(":")]
        days = parts[0] if len(parts) == 4 else 0
        hours, minutes, seconds = parts[-3:]
        return days * 86400 + hours * 3600 + minutes * 60 + seconds
    raise UserError(
        f"study.max_time must be seconds or DD:HH:MM:SS, but got {text!r}; two hours: 02:00:00"
    )

"""The errors a user can meet.

`cli.py` turns each `LzsweepError` into one line on stderr and its exit code; nothing else prints
them. A message states the rule, the value, the place and the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LzsweepError(Exception):
    """Root of our errors: something failed that is not the user's mistake (exit code 1)."""

    exit_code = 1


class UserError(LzsweepError):
    """The user's mistake: bad input, bad configuration, wrong place (exit code 2)."""

    exit_code = 2


class ConfigError(UserError):
    """Everything wrong with a configuration, found before any training, told at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """Games, chunks, a store or a weights file that is missing, empty, damaged or too new."""


class TrackingError(UserError):
    """The MLflow server does not answer or refuses us before anything has started."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at what was meant."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "see `lzsweep --help`"

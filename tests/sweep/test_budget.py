"""The budget: what ends a study besides the number of its trials."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from lzsweep.errors import UserError
from lzsweep.sweep.budget import Budget, parse_time
from lzsweep.sweep.record import Trial


def trial(number: int, value: float | None) -> Trial:
    return Trial(
        number=number,
        attempt=1,
        retries=0,
        state="complete" if value is not None else "failed",
        params={},
        values=None if value is None else (value,),
        metrics={},
        curve={},
        ending=None,
        reason="",
        run_id=None,
        started=None,
        finished=datetime(2026, 1, 1) + timedelta(seconds=number),
        train_s=None,
        worker=None,
        row=number,
    )


def spent(budget: Budget, *values: float | None, direction: str = "minimize") -> str:
    trials = [trial(n, value) for n, value in enumerate(values)]
    return budget.spent(trials, [direction], age_s=100.0, device_hours=2.0)


def test_no_limit_is_never_spent() -> None:
    assert spent(Budget(1), 0.0, 0.0, 0.0) == ""


def test_time_and_device_hours() -> None:
    assert "max_time of 100 s is over" in spent(Budget(9, max_time_s=100))
    assert spent(Budget(9, max_time_s=101)) == ""
    assert "max_device_hours of 2 are spent" in spent(Budget(9, max_device_hours=2))


def test_a_target_is_reached_from_its_side() -> None:
    assert "target of 0.5 is reached" in spent(Budget(9, target=0.5), 0.9, 0.5)
    assert spent(Budget(9, target=0.5), 0.9, 0.6) == ""
    assert "reached" in spent(Budget(9, target=0.5), 0.6, direction="maximize")
    assert spent(Budget(9, target=0.5), 0.4, direction="maximize") == ""


def test_patience_counts_finished_trials_since_the_best() -> None:
    budget = Budget(99, patience=2)
    assert spent(budget, 0.5, 0.4, 0.6) == ""
    assert "2 trials without a better one" in spent(budget, 0.5, 0.4, 0.6, None)
    assert spent(budget, None, None, None) == "", "nothing was found to be patient about"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (1.5, 1.5), ("00:01:30", 90), ("01:00:00:00", 86400), ("2:0:0", 7200)],
)
def test_times(text: str | float, seconds: float) -> None:
    assert parse_time(text) == seconds


def test_a_time_that_is_none() -> None:
    with pytest.raises(UserError, match="must be seconds or DD:HH:MM:SS, but got '2h'"):
        parse_time("2h")

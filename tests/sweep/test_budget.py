"""The budget: what ends a study besides the number of its trials."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lzsweep.errors import UserError
from lzsweep.sweep.budget import Budget, parse_time
from lzsweep.sweep.record import Trial, device_hours
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.study import Study
from tests.sweep.conftest import FAULTY, Cli, check_study
from tests.tracking.conftest import empty_database  # noqa: F401


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


@pytest.mark.slow
def test_each_limit_ends_a_sweep_and_is_named(cli: Cli, faulty: Path) -> None:
    command = (
        "-m", *FAULTY, "study.name=b", "lr=interval(0.1,0.2)", "study.n_trials=99",
        "worker.slots=1", "trainer.max_epochs=1",
    )  # fmt: skip

    def run(*limits: str) -> tuple[Study, str]:
        code, out, err = cli(*command, *limits)
        assert code == 0, err
        (line,) = [one for one in out.splitlines() if one.startswith("the study ended early: ")]
        why = line.removeprefix("the study ended early: ")
        code, out, err = cli("status", "b")
        assert code == 0, err
        assert f"ended early: {why}\n" in out
        assert cli.status("b")["spent"] == why
        return open_study("sqlite:///lzsweep.db", "b"), why

    study, why = run("study.patience=1")
    assert why == "study.patience is at its end: 1 trials without a better one"
    values = [(t.values or ())[0] for t in study.trials()]
    assert values[-1] >= min(values[:-1])
    assert values[:-1] == sorted(values[:-1], reverse=True), "each was better than those before"

    n_before, hours = len(values), device_hours(study.rows())
    study, why = run("study.patience=99", f"study.max_device_hours={hours + 1e-6}")
    assert why == f"study.max_device_hours of {hours + 1e-6:g} are spent"
    assert len(study.trials()) == n_before + 1

    age_s = time.time() - study.record.created
    study, why = run("study.max_device_hours=9", f"study.max_time={age_s + 10:.0f}")
    assert why == f"study.max_time of {age_s + 10:.0f} s is over"
    assert n_before + 2 <= len(study.trials()) < 99
    check_study(cli, faulty, "b", len(study.trials()))


def test_a_time_that_is_none() -> None:
    with pytest.raises(UserError, match="must be seconds or DD:HH:MM:SS, but got '2h'"):
        parse_time("2h")

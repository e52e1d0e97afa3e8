"""What a study found, in numbers and words."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lzsweep.sweep.report import (
    overhead_s,
    ranked,
    say_again,
    say_failure,
    show_ending,
    show_metric,
    show_seconds,
    sparkline,
)
from tests.sweep.test_budget import trial
from tests.sweep.test_page import record

BEGAN = datetime(2026, 1, 1)


def test_overhead_is_what_no_training_filled_in_each_slot() -> None:
    def ran(number: int, worker: str, start: float, end: float, train_s: float) -> object:
        return replace(
            trial(number, 1.0),
            worker=worker,
            started=BEGAN + timedelta(seconds=start),
            finished=BEGAN + timedelta(seconds=end),
            train_s=train_s,
        )

    trials = [
        ran(0, "host:1/0", 0, 10, 9),
        ran(1, "host:1/0", 12, 20, 8),
        ran(2, "host:1/1", 0, 10, 10),
        ran(3, "host:2/0", 9000, 9010, 8),  # another command, hours later
    ]
    assert overhead_s(trials) == pytest.approx((3 + 0 + 2) / 4)  # type: ignore[arg-type]
    assert overhead_s([]) is None


def test_the_cheapest_of_a_front_is_not_its_best(tmp_path: Path) -> None:
    metrics = ("cost/flops", "val/policy_loss", "val/policy_top1")
    kept = record(tmp_path, metrics=metrics, directions=("minimize", "minimize", "maximize"))
    values = {
        0: (9.0, 4.1, 0.1),
        1: (1.0, 5.0, 0.2),
        2: (9.0, 4.1, 0.3),
        3: None,
        4: (5.0, 4.2, 0.1),
    }
    trials = [replace(trial(number, 1.0), values=found) for number, found in values.items()]
    assert [t.number for t in ranked(kept, trials)] == [0, 2, 4, 1]
    assert say_again(kept) == "train the front's best in val/policy_loss again"
    costs = record(tmp_path, metrics=("cost/flops", "cost/train_s"), directions=("minimize",) * 2)
    assert [t.number for t in ranked(costs, trials)] == [1, 4, 0, 2]
    most = record(tmp_path, metrics=("val/policy_top1",), directions=("maximize",))
    top1 = [replace(t, values=t.values and t.values[2:]) for t in trials]
    assert [t.number for t in ranked(most, top1)] == [2, 1, 0, 4]
    assert say_again(most) == "train it again"


def test_a_curve_in_a_cell_and_a_time() -> None:
    assert sparkline([3.0, 2.0, float("nan"), 1.0]) == "█▄▁"
    assert sparkline([]) == ""
    assert [show_metric(v) for v in (0.25331, 519.2163, 1392528.0, -2e9)] == [
        "0.2533",
        "519.2163",
        "1.3925e+06",
        "-2e+09",
    ]
    assert [show_seconds(s) for s in (None, 5, 65, 3665)] == ["", "0:05", "1:05", "1:01:05"]


def test_a_failure_tells_how_it_ended_and_at_which_attempt() -> None:
    failed = replace(trial(3, None), state="failed", ending="infeasible", reason="out of memory")
    assert say_failure(failed, "3/trial.log") == (
        "#3 failed (infeasible): out of memory; see 3/trial.log"
    )
    lost = replace(failed, ending="error", attempt=4)
    assert show_ending(lost) == "error, attempt 4"
    assert show_ending(replace(lost, state="complete", ending="complete")) == "attempt 4"
    assert show_ending(trial(3, 1.0)) == ""

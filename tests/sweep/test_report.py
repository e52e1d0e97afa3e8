"""What a study found, in numbers and words."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from lzsweep.sweep.report import overhead_s, show_seconds, sparkline
from tests.sweep.test_budget import trial

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


def test_a_curve_in_a_cell_and_a_time() -> None:
    assert sparkline([3.0, 2.0, float("nan"), 1.0]) == "█▄▁"
    assert sparkline([]) == ""
    assert [show_seconds(s) for s in (None, 5, 65, 3665)] == ["", "0:05", "1:05", "1:01:05"]

"""Rows of the study database: each is read as often as it may have changed."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.storages import RDBStorage

from tests.sweep.test_study import GRID, make_study, must_claim


def test_what_waits_is_read_once_and_seen_when_it_begins(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = (make_study(url, n_trials=6, space=GRID) for _ in range(2))
    with study.lock():
        study.enqueue(list(GRID.grid()))
    assert [t.state for t in study.trials()] == ["waiting"] * 6
    read: list[int] = []
    all_of_them = RDBStorage._get_trials

    def count(*arguments: Any) -> Any:
        rows = all_of_them(*arguments)
        read.append(len(rows))
        return rows

    first = must_claim(other)
    monkeypatch.setattr(RDBStorage, "_get_trials", count)
    assert [t.state for t in study.trials()] == ["running"] + ["waiting"] * 5
    other.tell(first, "complete", [0.5])
    second = must_claim(study)
    assert second.trial.number == 1
    assert read == [1, 1], "what began, and what ended"
    assert not other.retry(second.trial, "node lost", max_retries=3)
    assert [t.attempt for t in study.trials()] == [1, 2, 1, 1, 1, 1]
    assert must_claim(study).trial.number == 1

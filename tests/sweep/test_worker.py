"""A worker's word on how attempts end, to the study and to MLflow; sweeps show the rest."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lzsweep.sweep.trial import End, Kind
from lzsweep.sweep.walltime import Walltime
from lzsweep.sweep.worker import Worker
from tests.sweep.test_study import make_study, must_claim


class Ends:
    """Hears the ends of runs; a real recorder would make a database for them."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Mapping[str, str]]] = []

    def end(self, _: Path, status: str, *, tags: Mapping[str, str], **__: Any) -> None:
        self.heard.append((status, tags))


@pytest.mark.parametrize(("kind", "n_times"), [("stopped", 2), ("killed", 3)])
def test_a_trial_that_was_lost_too_often_fails_with_the_same_words_everywhere(
    tmp_path: Path, kind: Kind, n_times: int
) -> None:
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}", n_trials=1)
    for _ in range(2):  # another command allowed more than this worker's
        study.retry(must_claim(study).trial, "node lost", max_retries=3)
    worker = Worker.__new__(Worker)  # it trains nothing, so it needs nothing of a configuration
    worker._study, worker._folder = study, tmp_path
    worker._walltime, worker._stopping = Walltime(study, 0), threading.Event()
    worker._cfg = OmegaConf.create({"study": {"max_retries": 1, "max_same_errors": 3}})
    worker._recorder = ends = Ends()  # type: ignore[assignment]
    worker._finish(must_claim(study), End(kind, "cancelled"), tmp_path / "0")
    (trial,) = study.trials()
    assert (trial.state, trial.attempt) == ("failed", 3)
    assert trial.reason == f"cancelled, {n_times} times; see study.max_retries"
    assert ends.heard == [("FAILED", {"lzsweep.state": "error", "lzsweep.reason": trial.reason})]


def test_what_is_written_of_a_dead_workers_trial_keeps_nobody_from_being_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}", n_trials=2)
    for _ in range(2):
        study.retry(must_claim(study).trial, "node lost", max_retries=3)
    lost, alive = must_claim(study), must_claim(study)
    monkeypatch.setattr(study, "stale", lambda: [lost.trial])
    heard = threading.Event()
    beat = study.beat

    def hear(rows: Sequence[int]) -> None:
        beat(rows)
        if written.is_set():
            heard.set()

    monkeypatch.setattr(study, "beat", hear)
    written = threading.Event()

    def publish(_: Path) -> None:
        written.set()
        assert heard.wait(60), "it takes as long as that"

    monkeypatch.setattr("lzsweep.sweep.worker.publish_best_of_dead", publish)
    worker = Worker.__new__(Worker)
    worker._study, worker._folder, worker._lock = study, tmp_path, threading.Lock()
    worker._running, worker._undertakers = {alive.row: None}, []  # type: ignore[dict-item]
    worker._stopping, worker._fault = threading.Event(), None
    worker._cfg = OmegaConf.create({"study": {"max_retries": 1}})
    worker._recorder = ends = Ends()  # type: ignore[assignment]
    worker._watch()
    monkeypatch.setattr(study, "stale", list)
    assert written.wait(60)
    worker._watch()
    (undertaker,) = worker._undertakers
    undertaker.join()
    assert heard.is_set()
    assert worker._fault is None
    ((status, tags),) = ends.heard
    assert status == "FAILED"
    assert "see study.max_retries" in tags["lzsweep.reason"]

"""A worker's word on how attempts end, to the study and to MLflow; sweeps show the rest."""

from __future__ import annotations

import threading
from collections.abc import Mapping
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

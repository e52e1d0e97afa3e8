"""A worker's word on how attempts end, to the study and to MLflow; sweeps show the rest."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lzsweep.config import LAST_CHECKPOINT, WEIGHTS_FILE
from lzsweep.sweep import worker as worker_module
from lzsweep.sweep.publisher import Publisher
from lzsweep.sweep.record import SeedResult
from lzsweep.sweep.study import Study
from lzsweep.sweep.trial import End, Kind
from lzsweep.sweep.walltime import Walltime
from lzsweep.sweep.worker import Worker
from lzsweep.tracking.journal import Journal
from tests.sweep.test_study import be_silent, make_study, must_claim


class Ends:
    """Hears the ends of runs; a real recorder would make a database for them."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Mapping[str, str]]] = []
        self.artifacts: list[Mapping[str, str]] = []

    def end(
        self, _: Path, status: str, *, tags: Mapping[str, str], artifacts: Mapping[str, str]
    ) -> None:
        self.heard.append((status, tags))
        self.artifacts.append(artifacts)


def make_worker(study: Study, folder: Path) -> tuple[Worker, Ends]:
    worker = Worker.__new__(Worker)  # it trains nothing, so it needs nothing of a configuration
    worker._study, worker._folder, worker._record = study, folder, study.record
    worker._walltime, worker._stopping = Walltime(study, 0), threading.Event()
    worker._cfg = OmegaConf.create({"study": {"max_retries": 1, "max_same_errors": 3}})
    worker._recorder = ends = Ends()  # type: ignore[assignment]
    worker._publisher = Publisher(worker._keep_network)
    return worker, ends


@pytest.mark.parametrize(("kind", "n_times"), [("stopped", 2), ("killed", 3)])
def test_a_trial_that_was_lost_too_often_fails_with_the_same_words_everywhere(
    tmp_path: Path, kind: Kind, n_times: int
) -> None:
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}", n_trials=1)
    for _ in range(2):  # another command allowed more than this worker's
        study.retry(must_claim(study).trial, "node lost", max_retries=3)
    worker, ends = make_worker(study, tmp_path)
    worker._finish(must_claim(study), End(kind, "cancelled"), tmp_path / "0")
    (trial,) = study.trials()
    assert (trial.state, trial.attempt) == ("failed", 3)
    assert trial.reason == f"cancelled, {n_times} times; see study.max_retries"
    assert ends.heard == [("FAILED", {"lzsweep.ending": "error", "lzsweep.reason": trial.reason})]


def test_what_is_written_of_a_dead_workers_trial_keeps_nobody_from_being_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}", n_trials=2)
    for _ in range(2):
        study.retry(must_claim(study).trial, "node lost", max_retries=3)
    lost, alive = must_claim(study), must_claim(study)
    be_silent(study, lost.row)
    heard = threading.Event()
    beat = study.beat

    def hear(rows: Sequence[int]) -> None:
        beat(rows)
        if written.is_set():
            heard.set()

    monkeypatch.setattr(study, "beat", hear)
    written = threading.Event()

    def publish(*_: object) -> None:
        written.set()
        assert heard.wait(60), "it takes as long as that"

    monkeypatch.setattr(Publisher, "_publish", publish)
    worker, ends = make_worker(study, tmp_path)
    worker._lock, worker._fault = threading.Lock(), None
    worker._running, worker._undertakers = {alive.row: None}, []  # type: ignore[dict-item]
    worker._watch()
    assert written.wait(60)
    worker._watch()
    (undertaker,) = worker._undertakers
    undertaker.join()
    assert heard.is_set()
    assert worker._fault is None
    ((status, tags),) = ends.heard
    assert status == "FAILED"
    assert "see study.max_retries" in tags["lzsweep.reason"]


def test_a_job_whose_time_is_over_waits_for_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slots do while they end trials, which comes before the worker's own end."""
    monkeypatch.setattr(worker_module, "HURRY_S", 0.5)
    worker, _ = make_worker(make_study(f"sqlite:///{tmp_path / 'study.db'}"), tmp_path)
    worker._lock, worker._running = threading.Lock(), {}
    (tmp_path / "0" / LAST_CHECKPOINT).parent.mkdir(parents=True)
    (tmp_path / "0" / LAST_CHECKPOINT).touch()
    ours, _theirs = multiprocessing.Pipe()
    monkeypatch.setattr(worker._publisher, "_start", lambda: None)
    monkeypatch.setattr(worker._publisher, "_is_alive", lambda: True)
    asleep = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    asleep.start()
    worker._publisher._process, worker._publisher._pipe = asleep, ours  # type: ignore[assignment]
    writing = worker._publisher.add(tmp_path / "0")
    worker._interrupt()
    writing.result(timeout=60)
    assert worker._stopping.is_set()
    asleep.join(60)
    assert asleep.exitcode == -signal.SIGKILL


def test_of_a_trial_of_several_seeds_that_is_lost_for_good_the_best_so_far_is_kept(
    tmp_path: Path,
) -> None:
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}", n_trials=1)
    worker, ends = make_worker(study, tmp_path)
    worker._record = replace(study.record, seeds=3)
    claim = must_claim(study)
    folder = tmp_path / "0"
    for seed, loss in {1: 0.3, 2: 0.2}.items():
        own = folder / f"seed{seed}"
        own.mkdir(parents=True)
        (own / WEIGHTS_FILE).write_text(f"weights of {seed}")
        with Journal(own) as journal:
            journal.metrics(1, {"loss": loss})
        study.keep_seed(claim, SeedResult(seed, (loss,), {"loss": loss}, 1.0))
    (folder / "seed3").mkdir()
    worker._cfg.study.max_retries = 0
    worker._finish(claim, End("killed", "cancelled"), folder)
    (trial,) = study.trials()
    assert (trial.state, [r.seed for r in trial.seeds]) == ("failed", [1, 2])
    assert (folder / WEIGHTS_FILE).read_text() == "weights of 2"
    assert ends.artifacts == [{WEIGHTS_FILE: ""}]

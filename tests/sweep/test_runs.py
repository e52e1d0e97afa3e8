"""The runs of a study's trials in MLflow, where a trial has ended before MLflow heard of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler

from lzsweep.config import BEST_CHECKPOINT
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.runs import reveal_runs, run_name, settle_runs
from lzsweep.sweep.studies import create_study, open_study
from lzsweep.sweep.study import Study
from lzsweep.tracking.client import connect
from lzsweep.tracking.journal import JOURNAL_NAME, Journal
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.runs import begin_parent
from tests.sweep.test_study import make_record, make_study, must_claim
from tests.tracking.conftest import empty_database, sqlite_uri  # noqa: F401


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of two trials, whose own run has begun."""
    record = replace(make_record(), folder=str(tmp_path / "s"), is_recorded=True)
    study, _ = create_study(
        f"sqlite:///{tmp_path}/study.db", "s", record, Budget(2), given=["n_trials"]
    )
    study.set_deciders(RandomSampler(seed=1), NopPruner())
    begin_parent(tmp_path / "s", experiment="e", study="s")
    return study


def test_the_run_of_a_trial_whose_worker_died_is_ended_with_what_it_left(
    study: Study,
    tmp_path: Path,
    sqlite_uri: str,  # noqa: F811
) -> None:
    folders = [tmp_path / "s" / str(number) for number in range(2)]
    for folder in folders:
        claim = study.claim("w")
        assert claim
        (folder / BEST_CHECKPOINT).parent.mkdir(parents=True)
        (folder / BEST_CHECKPOINT).write_text("a network")
        with Journal(folder) as journal:
            journal.start(experiment="e", name="n", parent_folder=folder.parent)
        study.tell(claim, "complete", (0.5,))
    with Journal(folders[1]) as journal:  # this one's worker came further
        journal.end("FINISHED")
        journal.artifact("trial.log")
    before = (folders[1] / JOURNAL_NAME).read_bytes()
    settle_runs(study, sqlite_uri)
    with Journal(folders[0]) as journal:
        assert journal.status == "FINISHED"
    run_id = run_id_of(folders[0])
    assert run_id
    client = connect(sqlite_uri)
    assert client.get_run(run_id).data.tags["lzsweep.ending"] == "complete"
    assert [a.path for a in client.list_artifacts(run_id, "checkpoints")] == [BEST_CHECKPOINT]
    assert (folders[1] / JOURNAL_NAME).read_bytes() == before, "files after the end are no attempt"


def test_runs_are_found_while_another_thread_delivers(
    study: Study,
    tmp_path: Path,
    sqlite_uri: str,  # noqa: F811
) -> None:
    folder = tmp_path / "s"
    for number in range(2):
        claim = study.claim("w")
        assert claim
        (folder / str(number)).mkdir()
        with Journal(folder / str(number)) as journal:
            journal.start(experiment="e", name=str(number), parent_folder=folder)
        study.tell(claim, "error", reason="why")

    is_held, lock = threading.Event(), FileLock(folder / "delivery.lock")

    def deliver_slowly() -> None:
        with lock:
            is_held.set()
            threading.Event().wait(1)

    thread = threading.Thread(target=deliver_slowly)
    thread.start()
    is_held.wait()
    reveal_runs(study, sqlite_uri)
    thread.join()
    ids = [run_id_of(folder / str(number)) for number in range(2)]
    assert None not in (*ids, run_id_of(folder))
    told = open_study(f"sqlite:///{tmp_path}/study.db", "s").trials()
    assert [(t.run_id, t.ending, t.reason) for t in told] == [(i, "error", "why") for i in ids]


def test_a_run_is_named_by_what_was_chosen_and_as_shortly_as_is_clear(tmp_path: Path) -> None:
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}")
    trial = must_claim(study).trial
    short = replace(trial, number=12, params={"network": "big", "lr": 0.0034567, "loss.value": 2})
    assert run_name(short) == "#012 big lr=0.00346 value=2"
    assert run_name(short, seed=3) == "#012 big lr=0.00346 value=2 seed=3"
    both = replace(trial, params={"loss.l2": 1e-4, "other.l2": 0.1})
    assert run_name(both) == "#000 loss.l2=0.0001 other.l2=0.1"

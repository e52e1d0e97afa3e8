"""The runs of a study's trials in MLflow, where a trial has ended before MLflow heard of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler

from lzsweep.sweep.budget import Budget
from lzsweep.sweep.runs import reveal_runs
from lzsweep.sweep.studies import create_study, open_study
from lzsweep.tracking.journal import Journal
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.runs import begin_parent
from tests.sweep.test_study import make_record
from tests.tracking.conftest import empty_database, sqlite_uri  # noqa: F401


def test_runs_are_found_while_another_thread_delivers(
    tmp_path: Path,
    sqlite_uri: str,  # noqa: F811
) -> None:
    url, folder = f"sqlite:///{tmp_path}/study.db", tmp_path / "s"
    record = replace(make_record(), folder=str(folder), is_recorded=True)
    study, _ = create_study(url, "s", record, Budget(2), given=["n_trials"])
    study.set_deciders(RandomSampler(seed=1), NopPruner())
    begin_parent(folder, experiment="e", study="s")
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
    told = open_study(url, "s").trials()
    assert [(t.run_id, t.ending, t.reason) for t in told] == [(i, "error", "why") for i in ids]

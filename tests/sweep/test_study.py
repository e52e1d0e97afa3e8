"""The study database: claims, the budget, retries, the lock."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState

from lzsweep.sweep import storage
from lzsweep.sweep import study as study_module
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.record import Claim, Record, Trial, next_attempt
from lzsweep.sweep.rows import TrialLost
from lzsweep.sweep.space import Parameter, Space
from lzsweep.sweep.studies import create_study, open_study
from lzsweep.sweep.study import Study

fork = multiprocessing.get_context("fork")

LINE = Space((Parameter("x", FloatDistribution(0.0, 1.0), "interval(0,1)", is_interval=True),))
GRID = Space(
    (
        Parameter("a", CategoricalDistribution(["p", "q"]), "p,q"),
        Parameter("b", CategoricalDistribution([1, 2, 3]), "1,2,3"),
    )
)


def make_record(lr: str = "0.1", space: Space = LINE) -> Record:
    return Record(
        space=space.texts,
        tree=space.to_json(),
        fixed=space.fixed,
        settings={"lr": lr, **{f"{k} (searched)": v for k, v in space.texts.items()}},
        metrics=("loss",),
        directions=("minimize",),
        folder="/tmp/s",
        conf=(),
        config_name="config",
        tracking_uri="",
        command=(),
        cwd="/tmp",
        code={},
        created=0.0,
    )


def make_study(url: str, n_trials: int = 3, name: str = "s", space: Space = LINE) -> Study:
    study, _ = create_study(
        url, name, make_record(space=space), Budget(n_trials), given=["n_trials"]
    )
    study.set_deciders(RandomSampler(seed=1), NopPruner())
    return study


def must_claim(study: Study, space: Space = LINE) -> Claim:
    claim = study.claim("w")
    assert claim is not None
    return claim


def in_fork(work: Callable[[], None]) -> int | None:
    process = fork.Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def test_the_budget_is_a_total_however_often_joined(url: str) -> None:
    for _ in range(2):
        study = make_study(url, n_trials=2)
        while claim := study.claim("w"):
            study.tell(claim, "complete", [0.5])
    assert [t.state for t in study.trials()] == ["complete", "complete"]
    assert study.is_done()
    study = make_study(url, n_trials=3)
    assert not study.is_done()
    study.tell(must_claim(study), "complete", [0.1])
    assert study.claim("w") is None
    assert study.best()[0].values == (0.1,)


def _work(url: str, n: int, space: Space) -> None:
    study = make_study(url, n_trials=n, space=space)
    if space.is_grid:
        with study.lock():
            study.enqueue(list(space.grid()))
    while claim := study.claim(f"w{os.getpid()}"):
        study.report(claim, 1, 0.5)
        study.tell(claim, "complete", [0.5])


def work_together(url: str, n_trials: int, space: Space) -> list[Trial]:
    """Eight processes that start at once train a study."""
    processes = [fork.Process(target=_work, args=(url, n_trials, space)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 8
    begun = [t for t in open_study(url, "s").trials() if t.state != "waiting"]
    assert [t.number for t in begun] == list(range(n_trials))
    assert {t.state for t in begun} == {"complete"}
    return begun


def test_processes_that_start_together_keep_the_exact_budget(url: str) -> None:
    assert len(work_together(url, 24, LINE)) == 24


@pytest.mark.slow
def test_processes_that_start_together_train_each_point_of_a_grid_once(url: str) -> None:
    axes = {"a": range(21), "b": range(20)}  # some points more than the budget
    parameters = [
        Parameter(name, CategoricalDistribution(list(axis)), ",".join(map(str, axis)))
        for name, axis in axes.items()
    ]
    trials = work_together(url, 8 * 50, Space(tuple(parameters)))
    assert len({tuple(t.params.values()) for t in trials}) == 8 * 50


def test_a_grid_is_queued_once_and_trains_each_point_once(url: str) -> None:
    for _ in range(2):
        study = make_study(url, n_trials=6, space=GRID)
        with study.lock():
            study.enqueue(list(GRID.grid()))
    seen = []
    while claim := study.claim("w"):
        seen.append(tuple(claim.trial.params.values()))
        study.tell(claim, "complete", [0.0])
    assert seen == [("p", 1), ("p", 2), ("p", 3), ("q", 1), ("q", 2), ("q", 3)]
    assert study.is_done()


def test_a_retry_keeps_number_parameters_and_curve(url: str) -> None:
    study = make_study(url)
    claim = must_claim(study)
    study.report(claim, 1, 0.7)
    assert not study.retry(claim.trial, "node lost", max_retries=3)
    (trial,) = study.trials()
    assert (trial.number, trial.attempt, trial.state) == (0, 2, "waiting")
    again = must_claim(study)
    assert again.trial.number == 0
    assert again.trial.params == claim.trial.params
    assert again.trial.curve == {1: 0.7}
    study.tell(again, "complete", [0.3])
    (trial,) = study.trials()
    assert (trial.state, trial.values, trial.attempt) == ("complete", (0.3,), 2)


def test_two_who_notice_one_loss_make_one_retry(url: str) -> None:
    study = make_study(url)
    trial = must_claim(study).trial
    assert not study.retry(trial, "node lost", max_retries=3)
    assert not open_study(url, "s").retry(trial, "node lost", max_retries=3)
    assert [t.state for t in study.trials()] == ["waiting"]
    assert must_claim(study).trial.attempt == 2
    study.tell(must_claim(study), "complete", [1.0])


def test_a_trial_that_is_told_while_others_take_it_up_has_one_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = make_study(url, n_trials=1), make_study(url, n_trials=1)
    claim = must_claim(study)

    def tell_first(*arguments: Any) -> Any:
        study.tell(claim, "complete", [0.5])
        return next_attempt(*arguments)

    monkeypatch.setattr(study_module, "next_attempt", tell_first)
    assert not other.retry(claim.trial, "silent", max_retries=3)
    assert [(t.state, t.attempt) for t in other.trials()] == [("complete", 1)]
    assert other.is_done()


def test_whoever_dies_while_taking_a_trial_up_leaves_it_to_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(url, n_trials=1)
    trial = must_claim(study).trial

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def take_up_and_die() -> None:
        monkeypatch.setattr(RDBStorage, "_get_prepared_new_trial", die)
        make_study(url, n_trials=1).retry(trial, "silent", max_retries=3)

    assert in_fork(take_up_and_die) == -signal.SIGKILL
    assert [(t.state, t.attempt) for t in study.trials()] == [("running", 1)]
    assert not study.retry(trial, "silent", max_retries=3)
    assert [(t.state, t.attempt) for t in study.trials()] == [("waiting", 2)]


def test_lost_attempts_end_at_the_limit_but_wanted_ones_are_free(url: str) -> None:
    study = make_study(url, n_trials=1)
    for _ in range(5):
        assert not study.retry(must_claim(study).trial, "stopped", max_retries=1, free=True)
    assert not study.retry(must_claim(study).trial, "killed", max_retries=1)
    assert study.retry(must_claim(study).trial, "killed", max_retries=1)
    (trial,) = study.trials()
    assert trial.state == "failed"
    assert trial.reason == "killed, 2 times; see study.max_retries"
    assert study.is_done()


@pytest.mark.parametrize("limit", [{"target": 0.5}, {"patience": 1}, {"max_time_s": 1.0}], ids=str)
def test_a_trial_that_was_lost_while_the_budget_was_spent_is_trained(
    url: str, limit: dict[str, Any]
) -> None:
    study = make_study(url, n_trials=9)
    claims = [must_claim(study) for _ in range(3)]
    create_study(url, "s", make_record(), Budget(9, **limit), given=list(limit))
    study = make_study(url, n_trials=9)
    for claim in claims[:2]:
        study.tell(claim, "complete", [0.5])
    assert study.spent()
    study.retry(claims[2].trial, "node lost", max_retries=3)
    assert not study.is_done()
    again = must_claim(study)
    assert (again.trial.number, again.trial.attempt) == (2, 2)
    study.tell(again, "complete", [0.6])
    assert study.claim("w") is None, "nothing new is begun"
    assert study.is_done()


def test_an_attempt_that_was_taken_away_is_refused(url: str) -> None:
    study = make_study(url)
    claim = must_claim(study)
    study.retry(claim.trial, "silent", max_retries=3)
    with pytest.raises(TrialLost, match="trial 0 goes on elsewhere"):
        study.report(claim, 1, 0.5)
    with pytest.raises(TrialLost, match="trial 0 goes on elsewhere"):
        study.tell(claim, "complete", [0.5])


def test_the_trial_of_a_killed_worker_is_stale_at_once(url: str) -> None:
    study = make_study(url)

    def claim_and_die() -> None:
        must_claim(make_study(url))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_fork(claim_and_die) == -signal.SIGKILL
    mine = must_claim(study)
    (stale,) = study.stale()
    assert stale.number == 0
    assert mine.trial.number == 1


def test_infeasible_is_failed_for_people_and_no_teacher_for_the_sampler(url: str) -> None:
    study = make_study(url)
    study.tell(must_claim(study), "infeasible", reason="loss is nan at step 3")
    (trial,) = study.trials()
    assert (trial.state, trial.reason) == ("failed", "loss is nan at step 3")
    assert study.best() == []


def test_the_pruner_stops_what_is_worse_than_the_median(url: str) -> None:
    study = make_study(url, n_trials=9)
    study.set_deciders(RandomSampler(seed=1), MedianPruner(n_startup_trials=2))
    for value in (0.1, 0.2):
        claim = must_claim(study)
        assert not study.report(claim, 1, value)
        study.tell(claim, "complete", [value])
    assert study.report(must_claim(study), 1, 0.9)


def test_a_stopped_study_hands_out_nothing_until_it_is_started_again(url: str) -> None:
    study = make_study(url)
    study.stop("three times the same error")
    assert study.claim("w") is None
    assert make_study(url).claim("w") is not None


def test_a_worker_killed_between_its_claim_and_the_first_heartbeat(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "GRACE_S", 2)

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def claim_and_die() -> None:
        study = make_study(url, n_trials=1)
        monkeypatch.setattr(study_module, "begin_row", die)
        study.claim("w")

    study = make_study(url, n_trials=1)
    assert in_fork(claim_and_die) == -signal.SIGKILL
    assert [t.state for t in study.trials()] == ["running"]
    assert study.claim("w") is None, "it may live and be about to beat"
    while not (stale := study.stale()):
        time.sleep(0.1)
    assert not study.retry(stale[0], "lost", max_retries=3)
    claim = must_claim(study)
    assert (claim.trial.number, claim.trial.attempt) == (0, 2)
    assert set(claim.trial.params) == {"x"}
    study.tell(claim, "complete", [1.0])
    assert study.is_done()


def test_a_claim_of_before_the_reboot_is_stale_at_once(url: str) -> None:
    study = make_study(url)
    row = must_claim(study).row
    assert study.stale() == []
    claim = study._storage.get_trial(row).user_attrs["claim"]
    study._storage.set_trial_user_attr(row, "claim", {**claim, "boot": "before"})
    assert [t.number for t in study.stale()] == [0], "though a process of that number lives"


@pytest.mark.parametrize(
    "other", [{"machine": "m", "boot": "its own"}, {"table": "pid:[1]"}], ids=str
)
def test_of_a_namesakes_process_nobody_here_knows(url: str, other: dict[str, str]) -> None:
    """Another machine that is called `localhost` too, or a container beside this one."""
    study = make_study(url)
    row = must_claim(study).row
    claim = study._storage.get_trial(row).user_attrs["claim"]
    study._storage.set_trial_user_attr(row, "claim", {**claim, **other, "pid": 2**22})
    assert study.stale() == []
    be_silent(study, row)
    assert [t.number for t in study.stale()] == [0]


def be_silent(study: Study, row: int) -> None:
    """As if its worker had beaten for the last time long ago."""
    beats = models.TrialHeartbeatModel
    long_ago = datetime.now(UTC) - timedelta(seconds=2 * storage.GRACE_S)
    with study._storage.engine.begin() as connection:
        connection.execute(
            sqlalchemy.update(beats).where(beats.trial_id == row).values(heartbeat=long_ago)
        )


def test_after_an_outage_the_others_have_time_to_be_heard(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(url)
    row = must_claim(study).row
    assert study.stale() == []
    be_silent(study, row)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 75)  # in which the database did not answer
    assert study.stale() == []
    study._hears_from -= storage.GRACE_S
    assert [t.number for t in study.stale()] == [0]


def test_who_is_heard_of_again_keeps_the_trial(url: str) -> None:
    """A worker whose sampler takes long looks lost, to one who then waits for the lock."""
    study, other = make_study(url), make_study(url)
    claim = must_claim(study)
    be_silent(study, claim.row)
    (seen,) = other.stale()
    study.beat([claim.row])
    assert other.take_up(seen, "lost", max_retries=3) is None
    assert [(t.attempt, t.state) for t in study.trials()] == [(1, "running")]
    be_silent(study, claim.row)
    assert other.take_up(seen, "lost", max_retries=3) == ""
    assert [(t.attempt, t.state) for t in study.trials()] == [(2, "waiting")]


def test_more_slots_than_the_database_has_connections_for_claim_at_once(url: str) -> None:
    study = make_study(url, n_trials=24)
    with ThreadPoolExecutor(24) as slots:
        claims = list(slots.map(study.claim, [f"w/{n}" for n in range(24)]))
    assert sorted(c.trial.number for c in claims if c) == list(range(24))


def test_a_claim_whose_answer_was_lost_is_found_again(url: str) -> None:
    study = make_study(url)
    claim = must_claim(study)
    assert study.unheard("somebody else") is None
    assert study.unheard("w") == claim
    study.tell(claim, "complete", [1.0])
    assert study.unheard("w") is None


def test_who_sees_a_claim_sees_its_parameters(url: str) -> None:
    class Watched(RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, of: Any) -> Any:
            (seen,) = other.trials()
            assert (seen.state, seen.worker, seen.params) == ("running", None, {})
            return super().sample_independent(study, trial, name, of)

    study, other = make_study(url), make_study(url)
    study.set_deciders(Watched(seed=1), NopPruner())
    claim = must_claim(study)
    (seen,) = other.trials()
    assert (seen.worker, seen.params) == ("w", claim.trial.params)


def test_a_claim_that_was_taken_up_while_it_was_made_is_none(url: str) -> None:
    class Slow(RandomSampler):
        """So slow that the others take its worker for dead."""

        def sample_independent(self, study: Any, trial: Any, name: str, of: Any) -> Any:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return super().sample_independent(study, trial, name, of)

    study = make_study(url)
    study.set_deciders(Slow(seed=1), NopPruner())
    assert study.claim("w") is None


def test_a_queued_trial_that_was_begun_while_it_was_claimed_is_none(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(url)
    with study.lock():
        study.enqueue([{"x": 0.5}])

    @contextmanager
    def lost() -> Iterator[None]:
        yield  # as the database was, and the lock with it

    monkeypatch.setattr(study, "lock", lost)
    waiting = study.trials()
    other = must_claim(make_study(url))
    monkeypatch.setattr(study, "trials", lambda: waiting)
    assert study.claim("w") is None
    assert not make_study(url).taken_away([other.row])


def test_a_sampler_that_raises_leaves_the_trial_to_whoever_claims_next(url: str) -> None:
    class Broken(RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, of: Any) -> Any:
            raise ArithmeticError("the matrix is singular")

    study = make_study(url, n_trials=1)
    study.set_deciders(Broken(seed=1), NopPruner())
    with pytest.raises(ArithmeticError, match="the matrix is singular"):
        study.claim("w")
    assert [t.state for t in study.trials()] == ["waiting"]
    assert study.may_claim()
    study = make_study(url, n_trials=1)
    claim = must_claim(study)
    assert (claim.trial.number, claim.trial.attempt, set(claim.trial.params)) == (0, 1, {"x"})
    study.tell(claim, "complete", [0.5])
    assert study.is_done()


def test_rows_that_others_ended_are_told(url: str) -> None:
    study = make_study(url)
    rows = [must_claim(study).row, must_claim(study).row]
    assert study.taken_away(rows) == []
    study.retry(study.trials()[1], "silent", max_retries=3)
    assert study.taken_away(rows) == rows[1:]


def test_a_zombie_is_no_worker(url: str) -> None:
    study = make_study(url)

    def claim_and_die() -> None:
        must_claim(make_study(url))
        os._exit(0)

    process = fork.Process(target=claim_and_die)
    process.start()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    (stale,) = study.stale()
    assert stale.number == 0
    process.join()


def test_who_is_idle_needs_no_lock_and_sees_what_is_handed_over(url: str) -> None:
    study, other = make_study(url, n_trials=1), make_study(url, n_trials=1)
    assert study.may_claim()
    claim = must_claim(study)
    with other.lock():
        assert not study.may_claim()
        before = study.open_rows()
        assert len(before) == 1
        assert other.open_rows() == before
    assert not other.retry(claim.trial, "node lost", max_retries=3)
    assert study.open_rows() != before
    assert study.may_claim()
    study.tell(must_claim(study), "complete", [0.1])
    assert study.open_rows() == frozenset()
    assert not study.may_claim()

"""What still fits into a job's time, and what a job does that gets nowhere."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution

from lzsweep.errors import LzsweepError
from lzsweep.sweep.signals import Signals
from lzsweep.sweep.space import Parameter, Space
from lzsweep.sweep.study import Study
from lzsweep.sweep.walltime import Walltime, seconds_to_checkpoint
from tests.sweep.test_study import make_study, must_claim

DELAY_S = 100.0
NOW = 1_000_000.0


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(f"sqlite:///{tmp_path / 'study.db'}", n_trials=9)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> float:
    """This process is a job of Slurm's that ends in half an hour."""
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "8",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_JOB_END_TIME": str(NOW + 1800),
    }.items():
        monkeypatch.setenv(name, value)
    return NOW + 1800


def finish_one(study: Study, train_s: float, n_validations: int) -> None:
    claim = must_claim(study)
    for step in range(1, n_validations + 1):
        study.report(claim, step, 1.0)
    study.tell(claim, "complete", [1.0], train_s=train_s)


def begun(study: Study, ends: float) -> Walltime:
    """A job that began 1000 s before its end and is at the moment of its signal."""
    times = iter([ends - 1000.0, *[ends - DELAY_S] * 9])
    return Walltime(study, DELAY_S, clock=lambda: next(times))


def test_a_trial_of_unknown_speed_is_always_started(study: Study, ends: float) -> None:
    assert Walltime(study, DELAY_S, clock=lambda: ends - DELAY_S - 1).has_room()


def test_nothing_is_started_that_reaches_no_checkpoint(study: Study, ends: float) -> None:
    finish_one(study, train_s=600.0, n_validations=3)  # 200 s a checkpoint
    finish_one(study, train_s=100.0, n_validations=2)
    finish_one(study, train_s=900.0, n_validations=3)
    assert seconds_to_checkpoint(study.trials()) == 200.0
    assert Walltime(study, DELAY_S, clock=lambda: ends - DELAY_S - 201).has_room()
    walltime = Walltime(study, DELAY_S, clock=lambda: ends - DELAY_S - 199)
    assert not walltime.has_room()


def test_each_network_is_judged_by_its_own_speed(tmp_path: Path) -> None:
    network = CategoricalDistribution(["tiny", "big", "huge"])
    space = Space((Parameter("network", network, "tiny,big,huge"),))
    study = make_study(f"sqlite:///{tmp_path / 'networks.db'}", n_trials=9, space=space)

    def train(name: str, train_s: float) -> None:
        with study.lock():
            study.enqueue([{"network": name}])
        finish_one(study, train_s, n_validations=1)

    train("tiny", 10.0)
    train("big", 500.0)
    assert seconds_to_checkpoint(study.trials()) == 500.0, "nobody knows which is next"
    with study.lock():
        study.enqueue([{"network": "huge"}])
    assert seconds_to_checkpoint(study.trials()) is None, "of huge nothing was seen"
    claim = must_claim(study)
    study.report(claim, 1, 1.0)
    assert not study.retry(claim.trial, "preempted", max_retries=1), "it goes on"
    assert seconds_to_checkpoint(study.trials()) is None, "later attempts count neither way"


def test_without_a_job_there_is_always_room(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    finish_one(study, train_s=1e9, n_validations=1)
    assert Walltime(study, DELAY_S).has_room()
    assert not Walltime(study, DELAY_S).is_over()
    assert Walltime(study, DELAY_S).delivery_s() == 60


@pytest.mark.parametrize(("delay_s", "leave_s"), [(DELAY_S, 50.0), (600.0, 60.0)])
def test_a_job_is_over_while_there_is_time_to_leave(
    study: Study, ends: float, delay_s: float, leave_s: float
) -> None:
    assert not Walltime(study, delay_s, clock=lambda: ends - leave_s - 1).is_over()
    assert Walltime(study, delay_s, clock=lambda: ends - leave_s + 1).is_over()


def test_a_server_that_is_gone_does_not_take_the_time_to_be_requeued(
    study: Study, ends: float
) -> None:
    """What is delivered at the end waits for MLflow, and only then the cluster is asked."""

    def delivery_s(left_s: float) -> float:
        return Walltime(study, DELAY_S, clock=lambda: ends - left_s).delivery_s()

    assert delivery_s(1000) == 60
    assert delivery_s(50) == 25, "half of its time to leave"
    assert delivery_s(20) == 0


def test_a_job_that_twice_gets_nowhere_fails(study: Study, ends: float) -> None:
    finish_one(study, train_s=4000.0, n_validations=1)
    signals = Signals(threading.Event())
    first, second = (begun(study, ends) for _ in range(2))
    assert not first.has_room()
    first.leave(signals)
    assert study.stopped() == ""
    assert not second.has_room()
    with pytest.raises(LzsweepError, match=r"time limit too short: .* needs at least 70 min"):
        second.leave(signals)
    assert study.stopped() == "", "others get on"


def test_a_job_that_got_on_is_never_blamed(study: Study, ends: float) -> None:
    finish_one(study, train_s=4000.0, n_validations=1)
    for _ in range(3):
        walltime = Walltime(study, DELAY_S, clock=lambda: ends - DELAY_S)
        assert not walltime.has_room()
        walltime.progress()
        walltime.leave(Signals(threading.Event()))
    assert study.stopped() == ""


def test_a_study_nobody_gets_on_with_is_stopped(study: Study, ends: float) -> None:
    first, second = (begun(study, ends) for _ in range(2))
    first.leave(Signals(threading.Event()))
    with pytest.raises(LzsweepError, match="time limit too short"):
        second.leave(Signals(threading.Event()))
    assert study.stopped().startswith("time limit too short: a worker ended twice")

"""Faults that strike from outside: processes killed, nodes lost, many that start at once."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from lzsweep.sweep import storage, worker
from lzsweep.sweep.studies import open_study
from tests.sweep.conftest import FAULTY, Cli, check_study, find_runs
from tests.sweep.fork import (
    StartFork,
    kill_trials,
    let_go_on,
    trials_in,
    wait_for_trials,
)
from tests.sweep.test_sweep import trials_of, wait_for

pytestmark = pytest.mark.slow

WAIT = ("-m", *FAULTY, "module.fault=wait", "study.name=x")
"""Trials that wait after their first checkpoint until they may go on."""
FOUR = (*WAIT, "lr=0.1,0.2", "module.size=1,2")


def attempts(n_trials: int) -> list[int]:
    trials = trials_of("x")
    assert len(trials) == n_trials
    return [t.attempt for t in trials]


def check_resumed(folder: Path, number: int) -> None:
    """A second attempt went on from the checkpoint of the first."""
    log = (folder / str(number) / "trial.log").read_text()
    assert [log.count(f"epoch {epoch}, step") for epoch in range(3)] == [1, 1, 1]


def test_a_worker_killed_with_two_busy_slots(cli: Cli, faulty: Path, fork: StartFork) -> None:
    first = fork(*FOUR)
    wait_for_trials(faulty, 2)
    first.kill()
    wait_for(lambda: not trials_in(faulty))
    let_go_on(faulty)
    code, _, err = cli(*FOUR)
    assert code == 0, err
    check_study(cli, faulty, "x", 4)
    assert attempts(4) == [2, 2, 1, 1]
    for number in range(2):
        check_resumed(faulty / "multirun/x", number)


def test_a_trial_waits_for_an_older_attempt_that_does_not_end(
    cli: Cli, faulty: Path, fork: StartFork
) -> None:
    command = (*WAIT, "lr=0.1")
    first = fork(*command)
    wait_for_trials(faulty, 1)
    (old,) = trials_in(faulty)
    old.suspend()
    first.kill()
    let_go_on(faulty)
    second = fork(*command)
    log = faulty / "multirun/x/0/trial.log"
    wait_for(lambda: "waiting: an older attempt of this trial holds" in log.read_text())
    assert old.status() == "stopped"
    old.resume()
    assert second.exit_code() == 0, second.output.read_text()
    check_study(cli, faulty, "x", 1)
    assert attempts(1) == [2]
    check_resumed(faulty / "multirun/x", 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="another host name needs root")
def test_the_node_of_the_last_trial_is_lost(
    cli: Cli, faulty: Path, fork: StartFork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "GRACE_S", 8)
    monkeypatch.setattr(worker, "WATCH_S", 1.0)
    command = (*WAIT, "lr=0.1", "worker.slots=1")
    node = fork(*command, host="node17")
    wait_for_trials(faulty, 1)
    (trial,) = trials_of("x")
    assert (trial.worker or "").startswith("node17:")
    assert socket.gethostname() != "node17"
    idle = fork(*command)
    wait_for(lambda: idle.says("joined study x"))
    node.kill()
    kill_trials(faulty)
    let_go_on(faulty)
    assert idle.exit_code() == 0, idle.output.read_text()
    check_study(cli, faulty, "x", 1)
    assert attempts(1) == [2]
    check_resumed(faulty / "multirun/x", 0)


def test_four_workers_that_start_at_the_same_second(
    cli: Cli, faulty: Path, fork: StartFork
) -> None:
    (faulty / "mlflow.db").unlink()  # to make it is part of the race
    begin = time.time() + 4

    def wait_for_the_bell() -> None:
        time.sleep(max(0.0, begin - time.time()))

    command = ("-m", *FAULTY, "study.name=x", "lr=0.1,0.2,0.3,0.4", "module.size=1,2,3")
    forks = [fork(*command, begin=wait_for_the_bell) for _ in range(4)]
    assert [f.exit_code() for f in forks] == [0] * 4, [f.output.read_text() for f in forks]
    assert sum(f.says("new study x") for f in forks) == 1
    status = check_study(cli, faulty, "x", 12)
    points = [tuple(t["params"].values()) for t in status["trials"]]
    assert len(set(points)) == 12
    assert attempts(12) == [1] * 12
    assert (faulty / "multirun/x/conf/0/module/faulty.yaml").exists()
    assert not list((faulty / "multirun/x").glob(".conf-*"))


def test_everything_killed_and_the_machine_started_again(
    cli: Cli, faulty: Path, fork: StartFork, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*WAIT, "lr=0.1,0.2")
    first = fork(*command)
    wait_for_trials(faulty, 2)
    first.kill()
    kill_trials(faulty)
    study = open_study("sqlite:///lzsweep.db", "x")
    for trial in study.trials():  # this very process has the dead worker's number, since the boot
        claim = study._storage.get_trial(trial.row).user_attrs["claim"]
        claim = {**claim, "boot": "before", "pid": os.getpid()}
        study._storage.set_trial_user_attr(trial.row, "claim", claim)
    let_go_on(faulty)
    code, _, err = cli(*command)
    assert code == 0, err
    check_study(cli, faulty, "x", 2)
    assert attempts(2) == [2, 2]


def test_the_controller_and_one_of_two_workers_killed(
    cli: Cli, faulty: Path, fork: StartFork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    command = (*FOUR, "hydra/launcher=local", "worker.count=2", "worker.slots=1")
    controller = fork(*command)
    wait_for_trials(faulty, 2)
    controller.kill()
    victim = (trials_of("x")[0].worker or "").split(":")[1].partition("/")[0]
    os.kill(int(victim), signal.SIGKILL)
    pids = [int(path.name.partition("-")[2]) for path in faulty.glob("waiting-*")]
    wait_for(lambda: sum(map(psutil.pid_exists, pids)) == 1)  # its trial ends with it
    let_go_on(faulty)
    # Nobody is there but the other worker; it ends the study and its run.
    best = faulty / "multirun/x/best/best.yaml"
    wait_for(best.exists)
    wait_for(
        lambda: [r.info.status for runs in find_runs(faulty) for r in runs] == ["FINISHED"] * 5
    )
    check_study(cli, faulty, "x", 4)
    assert sorted(attempts(4)) == [1, 1, 1, 2]
    check_resumed(faulty / "multirun/x", 0)

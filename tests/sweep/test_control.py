"""Control of a running sweep: Ctrl-C once and twice, from a terminal's process group."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from lzsweep.sweep.studies import open_study
from lzsweep.tracking.runs import COMMIT_TAG, close_parent
from tests.sweep.conftest import FAULTY, Cli, check_study, find_runs
from tests.sweep.fork import (
    StartFork,
    let_go_on,
    trials_in,
    wait_for_trials,
)
from tests.sweep.test_losses import WAIT, attempts, check_resumed
from tests.sweep.test_sweep import trials_of, wait_for

pytestmark = pytest.mark.slow

COMMAND = (*WAIT, "lr=0.1,0.2")


def test_ctrl_c_twice_ends_at_once(cli: Cli, faulty: Path, fork: StartFork) -> None:
    first = fork(*COMMAND)
    wait_for_trials(faulty, 2)
    first.signal(signal.SIGINT)
    wait_for(lambda: first.says("once more to end at once"))
    assert first.process.is_alive(), "the trials are in the middle of a step"
    first.signal(signal.SIGINT)
    assert first.exit_code() == 1
    wait_for(lambda: not trials_in(faulty))
    assert [t.state for t in trials_of("x")] == ["running", "running"]
    says = "the workers of trials 0, 1 are gone, whatever their state says"
    code, out, err = cli("status", "x")
    assert code == 0, err
    assert f"{says}; go on with them: lzsweep resume x" in out
    code, out, err = cli("stop", "x")
    assert code == 0, err
    assert says in out
    assert "running trials write" not in out
    parents, runs = find_runs(faulty)
    assert [r.info.status for r in (*parents, *runs)] == ["KILLED"] * 3
    let_go_on(faulty)
    code, _, err = cli(*COMMAND)
    assert code == 0, err
    check_study(cli, faulty, "x", 2)
    for number in range(2):
        check_resumed(faulty / "multirun/x", number)


def test_ctrl_c_lets_the_workers_of_a_launcher_write_their_checkpoints(
    cli: Cli, faulty: Path, fork: StartFork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    first = fork(*COMMAND, "hydra/launcher=local")
    wait_for_trials(faulty, 2)
    first.signal(signal.SIGINT)
    wait_for(lambda: first.says("once more to end at once"))
    time.sleep(2)  # submitit would kill its worker after one second
    let_go_on(faulty)
    assert first.exit_code() == 1
    assert first.says("study x is not complete; the same command goes on with it")
    assert [(t.state, t.retries) for t in trials_of("x")] == [("waiting", 0)] * 2
    parents, _ = find_runs(faulty)
    assert [p.info.status for p in parents] == ["KILLED"]
    code, _, err = cli(*COMMAND)
    assert code == 0, err
    check_study(cli, faulty, "x", 2)
    for number in range(2):
        check_resumed(faulty / "multirun/x", number)


def test_stopped_from_another_process_and_resumed(cli: Cli, faulty: Path, fork: StartFork) -> None:
    first = fork(*COMMAND, "module.batch_s=0.5")
    wait_for_trials(faulty, 2)
    code, out, err = cli("stop", "x")
    assert code == 0, err
    assert "2 running trials write their checkpoints" in out
    wait_for(lambda: first.says("stopped by `lzsweep stop`: trials write a checkpoint"))
    let_go_on(faulty)
    assert first.exit_code() == 1
    assert first.says("study x was stopped: by `lzsweep stop`")
    assert [t.state for t in trials_of("x")] == ["waiting", "waiting"]
    assert open_study("sqlite:///lzsweep.db", "x").stopped()
    code, _, err = cli(*COMMAND, "module.batch_s=0.5")
    assert code == 0, err
    check_study(cli, faulty, "x", 2)
    assert attempts(2) == [2, 2]
    assert all(t.retries == 0 for t in trials_of("x")), "a wanted stop is free"


def test_code_that_the_study_did_not_begin_with_is_told_and_tagged(
    cli: Cli, faulty: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ("-m", *FAULTY, "study.name=v", "lr=0.1,0.2")
    code, _, err = cli(*command, "study.n_trials=1")
    assert code == 0, err
    kept = open_study("sqlite:///lzsweep.db", "v")._study
    record = kept.user_attrs["record"]
    former = "0" * 40
    kept.set_user_attr("record", {**record, "code": {**record["code"], COMMIT_TAG: former}})
    code, _, err = cli(*command, "study.n_trials=2")
    assert code == 0, err
    assert f"the study began with commit {former}, this is " in err + caplog.text
    _, runs = find_runs(faulty)
    tags = {r.data.tags["lzsweep.trial"]: r.data.tags for r in runs}
    assert tags["1"]["lzsweep.code.study_began_with"] == f"commit {former}"
    assert "lzsweep.code.study_began_with" not in tags["0"]


def test_a_command_that_was_left_between_two_trials_does_not_close_the_study_for_good(
    cli: Cli, faulty: Path
) -> None:
    command = ("-m", *FAULTY, "lr=0.1", "study.name=x")
    code, _, err = cli(*command)
    assert code == 0, err
    close_parent(faulty / "multirun/x", f"sqlite:///{faulty}/mlflow.db", "KILLED")
    code, _, err = cli(*command)
    assert code == 0, err
    (parent,), _ = find_runs(faulty)
    assert parent.info.status == "FINISHED"

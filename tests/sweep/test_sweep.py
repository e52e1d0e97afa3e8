"""Whole sweeps: the budget, the grid, what MLflow shows, faults, joining."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from lzsweep.cli import main
from lzsweep.sweep.record import Trial
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.study import Study
from tests.sweep.conftest import QUICK, Cli, check_study, find_runs

pytestmark = pytest.mark.slow

SPACE = ("network=tiny,small", "lr=tag(log,interval(1e-3,1e-1))")


def test_the_same_command_joins_and_a_larger_budget_trains_the_rest(cli: Cli, work: Path) -> None:
    command = ("study.name=a", *SPACE, "hydra/sweeper/pruner=none")
    out = cli.sweep(*command, "study.n_trials=3")
    assert "new study a: minimize val/loss_unweighted over network=tiny,small" in out
    assert "a: 3 of 3 trials finished (3 complete)" in out
    assert "overhead a trial" in out
    assert "train it again: lzsweep --config-dir multirun/a +best=best" in out
    again = cli.sweep(*command, "study.n_trials=3")
    assert "study a is complete: 3 of 3 trials" in again
    assert "running" not in again
    before = cli.status("a")["trials"]
    cli.sweep(*command, "study.n_trials=5")
    status = check_study(cli, work, "a", 5)
    assert status["trials"][:3] == before
    for trial in status["trials"]:
        run = MlflowClient(f"sqlite:///{work}/mlflow.db").get_run(trial["run_id"])
        assert run.data.tags["lzsweep.ending"] == trial["state"] == "complete"
        assert trial["values"] == [trial["metrics"]["val/loss_unweighted"]]
        logged = MlflowClient(f"sqlite:///{work}/mlflow.db").get_metric_history(
            trial["run_id"], "val/loss_unweighted"
        )
        assert min(m.value for m in logged) == pytest.approx(trial["values"][0])


def test_discrete_choices_are_the_full_grid_each_once(cli: Cli, work: Path) -> None:
    cli.sweep("study.name=grid", "network=tiny,small", "lr=0.01,0.05", "hydra/sweeper/pruner=none")
    status = check_study(cli, work, "grid", 4)
    points = sorted((t["params"]["network"], t["params"]["lr"]) for t in status["trials"])
    assert points == [("small", 0.01), ("small", 0.05), ("tiny", 0.01), ("tiny", 0.05)]


def own_network(work: Path) -> None:
    """A network of the user's own that owns a part of the search space."""
    (work / "conf/network").mkdir(parents=True)
    (work / "conf/network/mine.yaml").write_text(
        "defaults: [tiny]\nblocks: 1\nspace: {lr: '0.01,0.02'}\n"
    )


def test_an_option_owns_its_space_and_a_known_good_point_comes_first(cli: Cli, work: Path) -> None:
    own_network(work)
    command = (
        "study.name=o", "network=tiny,mine", "hydra/sweeper/pruner=none", "worker.slots=1",
        "study.enqueue=[{network: mine, lr: 0.02}]",
    )  # fmt: skip
    out = cli.sweep(*command)
    assert "network=tiny,mine lr=0.01,0.02 for network=mine; 3 trials" in out
    status = check_study(cli, work, "o", 3)
    params = [t["params"] for t in status["trials"]]
    assert params == [
        {"network": "mine", "lr": 0.02},
        {"network": "tiny"},
        {"network": "mine", "lr": 0.01},
    ]
    for trial, rate in zip(status["trials"], ("0.02", "0.05", "0.01"), strict=True):
        config = work / f"multirun/o/{trial['number']}/config.yaml"
        if config.exists():
            assert f"lr: {rate}" in config.read_text()
    code, shown, err = cli("status", "o")
    assert code == 0, err
    assert shown.splitlines()[0].split()[:4] == ["#", "state", "network", "lr"]
    assert "study o is complete: 3 of 3 trials" in cli.sweep(*command)
    code, out, err = cli("--config-dir", "multirun/o", "+best=best", "--cfg", "job")
    assert code == 0, err
    best = status["best"]["params"]
    assert f"lr: {best.get('lr', 0.05)}\n" in out
    # Its best.yaml is a known-good point of the next study, and the space no key of a plain run.
    out = cli.sweep(
        "study.name=p", "network=tiny,mine", "seed=1,2", "study.n_trials=1",
        "study.enqueue=[multirun/o/best/best.yaml]",
    )  # fmt: skip
    (trial,) = check_study(cli, work, "p", 1)["trials"]
    assert trial["params"] == {"seed": 1, **best}
    code, _, err = cli(*QUICK, "network=mine", "logger=none")
    assert code == 0, err


def test_a_seeded_sweep_repeats_and_teaches_another(cli: Cli, work: Path) -> None:
    space = ("network=tiny", "batch_size=16,32", "lr=tag(log,interval(1e-3,1e-1))")
    command = (
        *space, "worker.slots=1", "study.n_trials=3", "hydra.sweeper.sampler.seed=3",
        "hydra.sweeper.sampler.n_startup_trials=1", "trainer.max_epochs=1",
    )  # fmt: skip
    points = []
    for name in ("a", "b"):
        cli.sweep(f"study.name={name}", f"study.storage=sqlite:///{name}.db", *command)
        trials = open_study(f"sqlite:///{name}.db", name).trials()
        points.append([(t.params, t.values) for t in trials])
    assert points[0] == points[1]
    assert len(points[0]) == 3
    out = cli.sweep(
        "study.name=c", "study.storage=sqlite:///a.db", *space, "study.n_trials=1",
        "study.warm_start=a", "trainer.max_epochs=1",
    )  # fmt: skip
    assert "the sampler learns from 3 trials of a; 0 do not fit this search space" in out
    assert "c: 1 of 1 trials finished" in out
    code, _, err = cli("-m", *QUICK, *space, "study.name=d", "study.warm_start=none")
    assert code == 2
    assert "there is no 'none' in it" in err
    assert not (work / "multirun/d").exists()


def test_a_sweep_that_cannot_be_is_refused_with_all_that_is_wrong(cli: Cli, work: Path) -> None:
    own_network(work)
    (work / "conf/optimizer").mkdir()
    (work / "conf/optimizer/bad.yaml").write_text(
        "defaults: [sgd]\nspace: {lr: 'interval(2,1)', network.blocks: 'interval(1,4)'}\n"
    )
    code, _, err = cli(
        "-m", "network=mine,smal", "optimizer=sgd,bad", "study.enqueue=[{batch_size: 1}]",
        "hydra/sweeper/sampler=grid", "study.warm_start=a", "study.seeds=1,2",
    )  # fmt: skip
    assert code == 2
    for part in (
        "study.seeds=1,2: what is searched must be read by each trial, but study is read once",
        "network=smal: the options of network are",
        "network and optimizer both own lr",
        "study.enqueue[0]: a point may set what is searched, but batch_size=1",
        "sampler=grid needs discrete choices only, but network.blocks is an interval",
        "study.warm_start needs a sampler that learns, but GridSampler learns from no others",
    ):
        assert part in err
    assert not (work / "multirun").exists()
    assert not (work / "lzsweep.db").exists()


def test_best_is_a_config_that_trains_again(cli: Cli, work: Path) -> None:
    cli.sweep("study.name=b", "network=tiny", "lr=0.01,0.02", "hydra/sweeper/pruner=none")
    best = cli.status("b")["best"]
    code, out, err = cli("--config-dir", "multirun/b", "+best=best", "--cfg", "job")
    assert code == 0, err
    assert f"lr: {best['params']['lr']}" in out
    assert "blocks: 2" in out
    assert "limit_train_batches: 4" in out
    assert "name: null" in out, "the study is no part of what was found"
    # In a process of its own, where no sweep has set Hydra up.
    done = subprocess.run(
        [sys.executable, "-m", "lzsweep", "best", "b"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "train it again: lzsweep --config-dir" in done.stdout


@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
def test_a_stock_sweeper_runs_plain_trainings(cli: Cli, work: Path, sweeper: str) -> None:
    code, _, err = cli(
        "-m", *QUICK, f"hydra/sweeper={sweeper}", "network=tiny", "lr=0.01,0.05",
        *(["hydra.sweeper.n_trials=2"] if sweeper == "optuna" else []),
    )  # fmt: skip
    assert code == 0, err
    parents, runs = find_runs(work)
    assert parents == []
    assert len(runs) == 2
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert all("val/loss_unweighted" in r.data.metrics for r in runs)


@pytest.mark.parametrize(
    ("logger", "file"), [("csv", "metrics.csv"), ("tensorboard", "events.out*"), ("none", "lock")]
)
def test_other_loggers_need_no_mlflow(cli: Cli, work: Path, logger: str, file: str) -> None:
    cli.sweep("study.name=l", f"logger={logger}", "network=tiny", "lr=0.01")
    (trial,) = cli.status("l")["trials"]
    assert trial["state"] == "complete"
    assert list(Path(trial["folder"]).glob(file))
    assert not (work / "mlflow.db").exists()


def test_several_objectives_end_in_a_front(cli: Cli, work: Path) -> None:
    out = cli.sweep(
        "study.name=m", "network=tiny,small", "lr=0.01,0.1",
        "objective.metric=[val/policy_loss,val/policy_top5,cost/flops]",
        "objective.direction=[minimize,maximize,minimize]",
    )  # fmt: skip
    status = check_study(cli, work, "m", 4)
    assert isinstance(status["best"], list)
    for trial in status["trials"]:
        policy_loss, top5, flops = trial["values"]
        assert policy_loss == trial["metrics"]["val/policy_loss"]
        beaten = any(
            o["values"][0] < policy_loss and o["values"][1] > top5 and o["values"][2] <= flops
            for o in status["trials"]
        )
        assert not (beaten and trial in status["best"])
    costs = {(t["params"]["network"], t["values"][2]) for t in status["trials"]}
    (_, small), (_, tiny) = sorted(costs)  # the same for each trial of a network
    assert tiny < small
    assert "tiny" in {t["params"]["network"] for t in status["best"]}, "nothing is cheaper"
    assert out.count("front: #") == len(status["best"]) >= 1
    for trial in status["best"]:
        assert f"front: #{trial['number']} val/policy_loss={trial['values'][0]:.4f}" in out
        assert f"cost/flops={trial['values'][2]:.5g}" in out
    assert "train the front's best in val/policy_loss again: lzsweep" in out
    code, listed, err = cli("list")
    assert code == 0, err
    assert f"front of {len(status['best'])}" in listed


def test_a_budget_once_given_stays_until_it_is_lifted(cli: Cli) -> None:
    command = ("study.name=a", "network=tiny", "lr=interval(0.01,0.1)", "study.target=100")
    cli.sweep(*command, "study.n_trials=1")
    out = cli.sweep(*command[:-1], "study.n_trials=2")
    assert (
        "study a is complete: 1 of 2 trials; study.target of 100 is reached; change that," in out
    )
    out = cli.sweep(*command[:-1], "study.target=null")
    assert "a: 2 of 2 trials finished" in out


def test_a_killed_trial_process_goes_on_from_its_checkpoint(cli: Cli, work: Path) -> None:
    killed: list[int] = []

    def kill_one(study: Study, trials: list[Trial]) -> None:
        victims = [p for p in trial_processes() if str(work / "multirun/k/0") in open_files(p)]
        if not killed and victims and any(t.number == 0 and len(t.curve) > 2 for t in trials):
            killed.append(victims[0].pid)
            victims[0].kill()

    with watching("k", kill_one):
        cli.sweep(
            "study.name=k", "network=tiny", "lr=0.01,0.02", "trainer.max_epochs=30",
            "hydra/sweeper/pruner=none",
        )  # fmt: skip
    assert killed
    check_study(cli, work, "k", 2)
    trial = next(t for t in open_study("sqlite:///lzsweep.db", "k").trials() if t.number == 0)
    assert trial.attempt == 2
    assert trial.state == "complete"
    assert sorted(trial.curve) == list(range(1, 31)), "each epoch reported once"
    log = (work / "multirun/k/0/trial.log").read_text()
    assert log.count("epoch 0,") == 1, "the second attempt did not start anew"


def test_sigterm_to_a_trial_is_the_workers_business(cli: Cli, work: Path) -> None:
    sent: list[int] = []

    def send(study: Study, trials: list[Trial]) -> None:
        if not sent and any(t.curve for t in trials):
            for process in trial_processes():
                process.terminate()
                sent.append(process.pid)

    with watching("i", send):
        cli.sweep("study.name=i", "network=tiny", "lr=0.01,0.02", "trainer.max_epochs=20")
    assert sent
    check_study(cli, work, "i", 2)
    trials = open_study("sqlite:///lzsweep.db", "i").trials()
    assert {t.attempt for t in trials} == {1}


def test_a_seeded_sampler_proposes_new_points_after_a_restart(cli: Cli) -> None:
    command = (
        "study.name=r",
        "network=tiny",
        "lr=interval(0.01,0.1)",
        "hydra/sweeper/pruner=none",
    )
    for n_trials in (2, 4):
        cli.sweep(*command, f"study.n_trials={n_trials}", "hydra.sweeper.sampler.seed=1")
    rates = [t["params"]["lr"] for t in cli.status("r")["trials"]]
    assert len(set(rates)) == 4


def test_a_killed_sweep_goes_on_by_the_same_command(cli: Cli, work: Path) -> None:
    command = (
        "-m", *QUICK, "study.name=w", *SPACE, "study.n_trials=4", "trainer.max_epochs=12",
        "hydra/sweeper/pruner=none",
    )  # fmt: skip
    process = multiprocessing.get_context("fork").Process(target=in_own_group, args=(command,))
    process.start()
    wait_for(lambda: any(t.curve and not t.is_finished for t in trials_of("w")))
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    n_before = sum(t.is_finished for t in trials_of("w"))
    assert n_before < 4
    code, _, err = cli(*command)
    assert code == 0, err
    check_study(cli, work, "w", 4)
    assert max(t.attempt for t in trials_of("w")) == 2


def test_ctrl_c_hands_the_trials_back(cli: Cli, work: Path) -> None:
    command = (*SPACE, "study.name=c", "study.n_trials=2", "trainer.max_epochs=40")

    def interrupt(study: Study, trials: list[Trial]) -> None:
        if any(t.curve for t in trials):
            os.kill(os.getpid(), signal.SIGINT)
            study.name = ""  # once

    with watching("c", interrupt):
        code, _, err = cli("-m", *QUICK, *command)
    assert code == 1
    assert "SIGINT: trials write a checkpoint and go back to the study" in err
    assert "the same command goes on with it" in err
    assert "waiting" in {t["state"] for t in cli.status("c")["trials"]}
    (parent,), runs = find_runs(work)
    assert {r.info.status for r in runs} <= {"KILLED", "FINISHED"}
    assert parent.info.status == "KILLED"
    cli.sweep(*command, "hydra/sweeper/pruner=none")
    check_study(cli, work, "c", 2)


def test_a_study_is_stopped_from_anywhere_and_resumed(cli: Cli, work: Path) -> None:
    command = (*SPACE, "study.name=s", "study.n_trials=2", "trainer.max_epochs=40")
    stopped: list[str] = []

    def stop(study: Study, trials: list[Trial]) -> None:
        if any(t.curve for t in trials) and not stopped:
            stopped.append("now")
            assert main(["stop", "s"]) == 0

    with watching("s", stop):
        code, _, err = cli("-m", *QUICK, *command, "hydra/sweeper/pruner=none")
    assert code == 1
    assert "study s was stopped: by `lzsweep stop`" in err
    assert "waiting" in {t["state"] for t in cli.status("s")["trials"]}
    (parent,), _ = find_runs(work)
    assert parent.info.status == "KILLED"
    done = subprocess.run(
        [sys.executable, "-m", "lzsweep", "resume", "s", "seed=2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, "another configuration is another study"
    assert "choose another study.name" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "lzsweep", "resume", "s"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("study.name=") == 1, "each word once"
    assert "s: 2 of 2 trials finished" in done.stdout
    check_study(cli, work, "s", 2)
    code, out, err = cli("status", "s", "--trial", "0")
    assert code == 0, err
    assert "epoch 39" in out


def test_a_target_ends_the_study_and_resume_goes_on_with_all_that_was_said(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = "sqlite:///lzsweep.db"
    monkeypatch.setenv("LZSWEEP_STORAGE", usual)  # it is put back then, whatever `resume` does
    own = work / "mine" / "sweeps" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(
        "# @package _global_\nstudy: {n_trials: 9, space: {lr: 'interval(0.01,0.1)'}}\n"
    )
    command = ("--config-dir", "mine", "sweeps=own", "study.name=t", "network=tiny")
    out = cli.sweep(*command, "study.target=100", "worker.slots=1")
    assert "the study ended early: study.target of 100 is reached" in out
    assert cli.status("t")["states"]["complete"] == 1
    assert "study.target of 100 is reached" in cli.sweep(*command)

    code, out, err = cli("resume", "t", "study.n_trials=12")
    assert code == 0, err
    assert "1 of 12 trials; study.target of 100 is reached" in out
    code, out, err = cli("resume", "t")
    assert code == 0, err
    assert "1 of 12 trials; study.target of 100 is reached" in out, "what was said last holds"
    with (
        closing(sqlite3.connect("lzsweep.db")) as db,
        closing(sqlite3.connect("other.db")) as other,
    ):
        db.backup(other)
    code, out, err = cli("resume", "t", "study.n_trials=15", "--storage", "sqlite:///other.db")
    assert code == 0, err
    assert "1 of 15 trials" in out
    monkeypatch.setenv("LZSWEEP_STORAGE", usual)
    assert cli.status("t")["n_trials"] == 12, "the one that was named, not the usual one"


def test_the_same_error_three_times_stops_the_study(cli: Cli, work: Path) -> None:
    code, out, err = cli(
        "-m", *QUICK, "study.name=e", "network=tiny", "lr=interval(0.01,0.1)",
        "study.n_trials=9", "worker.slots=1", "optimizer.momentum=-1",
    )  # fmt: skip
    assert code == 1
    assert "study e was stopped: the same error 3 times running" in err
    assert "momentum" in err
    code, shown, err = cli("status", "e")
    assert code == 0, err
    assert "momentum" in shown
    assert cli.status("e")["states"]["failed"] == 3
    assert "see multirun/e/0/trial.log" in out


def test_a_lost_learning_rate_is_infeasible_not_fatal(cli: Cli, work: Path) -> None:
    cli.sweep("study.name=n", "network=tiny", "lr=1e12,0.01", "hydra/sweeper/pruner=none")
    status = check_study(cli, work, "n", 2)
    assert [t["state"] for t in status["trials"]] == ["failed", "complete"]
    assert "finite" in status["trials"][0]["reason"]


def trials_of(study: str) -> list[Trial]:
    if not Path("lzsweep.db").exists():
        return []
    try:
        return open_study("sqlite:///lzsweep.db", study).trials()
    except Exception:  # not there yet
        return []


def trial_processes() -> list[psutil.Process]:
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return psutil.Process(server).children() if server else []


def open_files(process: psutil.Process) -> str:
    try:
        return " ".join(file.path for file in process.open_files())
    except psutil.Error:
        return ""


def wait_for(condition: Callable[[], bool], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)


def in_own_group(command: tuple[str, ...]) -> None:
    os.setsid()
    forkserver._forkserver.__init__()  # type: ignore[misc]  # the parent's is not ours
    main(command)


class watching:
    """Calls a function with the study and its trials, again and again, while the body runs."""

    def __init__(self, name: str, function: Callable[[Study, list[Trial]], None]) -> None:
        self._name = name
        self._function = function
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop)

    def _loop(self) -> None:
        wait_for(lambda: bool(trials_of(self._name)) or self._done.is_set())
        study = open_study("sqlite:///lzsweep.db", self._name)
        while not self._done.wait(0.1) and study.name:
            self._function(study, study.trials())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

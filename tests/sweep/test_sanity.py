"""The one batch before any trial, of a module whose metrics nobody knows."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution

from lzsweep.sweep import sanity
from lzsweep.sweep.attempt import Attempts
from lzsweep.sweep.sanity import Sanity, find_strangers
from lzsweep.sweep.slots import Slot
from lzsweep.sweep.space import Parameter, Space
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.study import Study
from tests.sweep.conftest import FAULTY, Cli, check_study, find_runs
from tests.sweep.fork import StartFork, let_go_on, trials_in, wait_for_trials
from tests.sweep.test_study import make_study, must_claim
from tests.sweep.test_sweep import trials_of, wait_for

TYPO = ("-m", *FAULTY, "study.name=x", "objective.metric=val/los", "lr=0.1,0.2,0.3,0.4")
REFUSAL = (
    "an objective must be logged by the module, but val/los never was; logged: cost/parameters,"
    " cost/train_s, test/loss, train/loss, train/loss_epoch, train/loss_step, val/loss; did you"
    " mean val/loss? set objective.metric, or worker.sanity=false if it is logged later than in"
    " the first batch of tests.sweep.faulty.Faulty, which was trained before any trial"
)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the batch has its folder."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(sanity, "TemporaryDirectory", partial(TemporaryDirectory, dir=folder))
    return folder


def check_untouched(folder: Path) -> None:
    """No trial of the study in this folder was begun, and nothing is left of the batch."""
    assert {t.state for t in trials_of("x")} <= {"waiting"}
    attempts = open_study("sqlite:///lzsweep.db", "x").attempts()
    assert [a.worker for a in attempts] == [None] * len(attempts)
    assert not [path for path in folder.glob("multirun/x/*") if path.name.isdigit()]
    assert not list(folder.rglob("*.ckpt"))


@pytest.mark.slow
def test_a_misspelt_objective_of_a_users_own_module_stops_the_study_before_any_trial(
    cli: Cli, faulty: Path, scratch: Path
) -> None:
    code, out, err = cli(*TYPO)
    assert code == 2
    assert err.strip() == f"lzsweep: study x was stopped: {REFUSAL}"
    assert "x: 0 of 4 trials finished (none)" in out
    check_untouched(faulty)
    assert not list(scratch.iterdir())
    parents, runs = find_runs(faulty)
    assert [p.info.status for p in parents] == ["FAILED"]
    assert not runs
    # The module may have been corrected meanwhile.
    code, _, err = cli(*TYPO)
    assert code == 2
    assert REFUSAL in err
    check_untouched(faulty)
    code, _, err = cli(*TYPO, "worker.sanity=false")
    assert code == 1
    assert "study x was stopped: the same error 3 times running: an objective must be" in err


@pytest.mark.slow
def test_the_batch_changes_no_trial_and_a_test_may_be_what_logs_the_objective(
    cli: Cli, faulty: Path, scratch: Path
) -> None:
    found = []
    for name, switch in {"with": "worker.sanity=true", "without": "worker.sanity=false"}.items():
        code, _, err = cli(
            "-m", *FAULTY, f"study.name={name}", switch, "lr=interval(0.1,0.2)", "worker.slots=1",
            "study.n_trials=2", "hydra.sweeper.sampler.seed=3", "objective.metric=test/loss",
        )  # fmt: skip
        assert code == 0, err
        status = check_study(cli, faulty, name, 2)
        found.append([(t["params"], t["values"]) for t in status["trials"]])
        files = {p.name for p in (faulty / "multirun" / name / "0").iterdir()}
        assert "trial.log" in files
    assert found[0] == found[1]
    assert not list(scratch.iterdir())
    marks = [open_study("sqlite:///lzsweep.db", n)._study.user_attrs for n in ("with", "without")]
    assert [m.get("sanity") for m in marks] == ["over", None]


@pytest.mark.slow
def test_of_a_module_that_fails_in_its_first_batch_the_trials_tell(cli: Cli, faulty: Path) -> None:
    code, _, err = cli(*TYPO, "module.fault=error", "module.at=0")
    assert code == 1
    assert "study x was stopped: the same error 3 times running: ValueError: a bad step" in err
    (log,) = (faulty / "multirun/x/workers").glob("*/*.log")
    assert "trained to see what it logs, ended: ValueError: a bad step" in log.read_text()


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_batch_leaves_it_to_another(
    faulty: Path, scratch: Path, fork: StartFork
) -> None:
    command = (*TYPO, "module.fault=wait", "module.at=0")
    first = fork(*command)
    wait_for_trials(faulty, 1)
    second = fork(*command)
    wait_for(lambda: second.says("joined study x"))
    first.kill()
    wait_for_trials(faulty, 2)
    let_go_on(faulty)
    assert second.exit_code() == 2
    assert second.says(REFUSAL)
    check_untouched(faulty)


@pytest.mark.slow
def test_a_stop_ends_the_batch_and_the_same_command_trains_it_again(
    cli: Cli, faulty: Path, scratch: Path, fork: StartFork
) -> None:
    command = (*TYPO, "module.fault=wait", "module.at=0")
    first = fork(*command)
    wait_for_trials(faulty, 1)
    first.signal(signal.SIGINT)
    assert first.exit_code() == 1
    assert first.says("study x is not complete; the same command goes on with it")
    assert not trials_in(faulty)
    assert not list(scratch.iterdir())
    check_untouched(faulty)
    let_go_on(faulty)
    code, _, err = cli(*command)
    assert code == 2, err
    check_untouched(faulty)


def take(study: Study) -> bool | None:
    """The same as another process sees it."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    url = str(study._storage.engine.url.render_as_string(hide_password=False))

    def work() -> None:
        theirs.send(open_study(url, study.name).take_sanity())

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    answer: bool | None = ours.recv()
    process.join()
    return answer


def test_of_several_workers_one_trains_the_batch_until_there_is_a_verdict(url: str) -> None:
    study = make_study(url)
    assert take(study) is True
    assert study.take_sanity() is True, "who had it died"
    assert study.take_sanity() is True, "the database was lost before it answered"
    assert take(study) is None
    study.end_sanity(is_over=False)
    assert take(study) is True, "it was stopped"
    assert study.take_sanity() is True
    study.end_sanity(is_over=True)
    assert take(study) is False
    assert study.take_sanity() is False


def test_what_has_reported_an_objective_needs_no_batch(tmp_path: Path) -> None:
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}")
    claim = must_claim(study)
    assert study.take_sanity() is True
    study.end_sanity(is_over=False)
    study.report(claim, 1, 0.5)
    assert study.take_sanity() is False


def test_a_verdict_that_never_comes_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}")
    monkeypatch.setattr(sanity, "LOOK_S", (0.01, 0.02))
    monkeypatch.setattr(sanity, "WAIT_S", 0.2)
    monkeypatch.setattr(sanity, "Spec", None)  # it trains nothing
    study._study.set_user_attr("sanity", {"host": "a node that died", "boot": "", "pid": 1})
    watched = Sanity(study, [{"module": {"_target_": "a.B"}}], threading.Event())
    watched.settle(Attempts(), Slot(0, None, 1))
    assert not study.stopped()


def test_a_module_of_ours_costs_nothing() -> None:
    ours = {"module": {"_target_": "lzsweep.train.module.LeelaZero"}}
    assert find_strangers(ours, Space(()), must_not_be_asked) == []
    watched = Sanity(None, [], threading.Event())  # type: ignore[arg-type]  # it asks no study
    watched.settle(Attempts(), Slot(0, None, 1))


def test_each_module_that_is_searched_and_is_not_ours_has_its_batch() -> None:
    names = ["lzsweep.train.module.LeelaZero", "a.B", "c.D"]

    def compose(overrides: Sequence[str]) -> dict[str, Any]:
        (override,) = overrides
        return {"module": {"_target_": override.removeprefix("module._target_=")}}

    modules = Parameter("module._target_", CategoricalDistribution(names), ",".join(names))
    first = compose([f"module._target_={names[0]}"])
    strangers = find_strangers(first, Space((modules,)), compose)
    assert sorted(c["module"]["_target_"] for c in strangers) == ["a.B", "c.D"]
    other = Parameter("lr", CategoricalDistribution([1, 2]), "1,2")
    alone = {"module": {"_target_": "a.B"}}
    assert find_strangers(alone, Space((other,)), must_not_be_asked) == [alone]


def must_not_be_asked(_: Sequence[str]) -> dict[str, Any]:
    raise AssertionError("composing takes a tenth of a second")

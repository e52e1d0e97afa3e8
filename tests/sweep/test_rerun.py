"""A trial trained again from its record gives the same curve."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler

from lzsweep.config import conf_dir
from lzsweep.errors import DataError
from lzsweep.sweep import rerun
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.rerun import _differences
from lzsweep.sweep.space import Parameter, Space
from lzsweep.sweep.studies import create_study
from lzsweep.tracking.runs import COMMIT_TAG, VERSION_TAG, code_version
from lzsweep.train.build import ensure_store
from lzsweep.train.run import data_version
from tests.sweep.conftest import Cli, find_runs
from tests.sweep.test_study import make_record, must_claim

SGF = "(;SZ[19]KM[7.5]RE[B+R];B[pd];W[dd];B[pp];W[dp];B[fq];W[cn];B[jp];W[qn])"


def test_the_version_of_the_data_is_its_content(work: Path, cache: Path) -> None:
    (work / "games").mkdir()
    (work / "games/a.sgf").write_text(SGF)
    node = {"_target_": "lzsweep.train.data.GoData", "path": "games", "cache_dir": str(cache)}
    (before,) = data_version(node).values()
    shutil.copytree("games", "same")
    assert list(data_version({**node, "path": "same"}).values()) == [before]
    (work / "games/a.sgf").write_text(SGF.replace("qn", "qo"))
    (after,) = data_version(node).values()
    assert after != before
    assert data_version({"_target_": "mine.Data"}) == {}


def test_the_version_of_a_store_is_its_content(work: Path, cache: Path) -> None:
    found: list[str] = []
    for name, sgf in (("a", SGF), ("same", SGF), ("other", SGF.replace("qn", "qo"))):
        (work / "games.sgf").write_text(sgf)
        shutil.copy(ensure_store("games.sgf", cache), f"{name}.store")
        node = {"_target_": "lzsweep.train.data.GoData", "path": f"{name}.store"}
        found += data_version({**node, "cache_dir": str(cache)}).values()
    assert found[0] == found[1] != found[2]


@pytest.mark.slow
def test_a_trial_trained_again_gives_the_same_curve(cli: Cli, work: Path, cache: Path) -> None:
    shutil.copy(ensure_store("bundled", cache), "games.store")
    cli.sweep(
        "study.name=a", "network=tiny", "lr=0.02", "worker.slots=2", "study.seeds=2",
        "trainer.val_check_interval=0.5", "+callbacks.noisy._target_=tests.sweep.noisy.Noisy",
        "data.path=games.store",
    )  # fmt: skip
    logs = (work / "multirun/a/0/seed2/trial.log").read_text()
    for said in ("by print", "by a warning", "below Python", "by a loader's worker"):
        assert f"said {said}" in logs
    assert "the compiler was imported: False" in logs, "each trial would import it anew"
    code, out, err = cli("rerun", "a", "--trial", "0", "--seed", "2")
    assert code == 0, err
    assert out.count(" now: the same") == 1
    _, runs = find_runs(work)
    (again,) = [r for r in runs if "rerun_of" in r.data.tags]
    (then,) = [r for r in runs if r.data.tags.get("lzsweep.seed") == "2"]
    assert again.data.tags["rerun_of"] == "a/0"
    assert again.data.tags["rerun_of_run"] == then.info.run_id
    assert again.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    names = [name for name in then.data.metrics if name.startswith(("val/", "test/", "train/"))]
    assert len(names) == 18
    for name in names:
        curves = [
            [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for run in (then, again)
        ]
        assert curves[0] == curves[1], f"{name} is the same at each step, bit for bit"
    check_refusals(cli, work)


def check_refusals(cli: Cli, work: Path) -> None:
    for arguments, told in [
        (("a", "--trial", "7"), "a has no trial 7, only 0"),
        (("b", "--trial", "0"), "has no study 'b'; studies there: a"),
        (("a", "--trial", "0", "--seed", "9"), "a seed of trial 0 of a (1, 2), but got 9"),
    ]:
        code, _, err = cli("rerun", *arguments)
        assert code == 2
        assert told in err
        assert len(err.splitlines()) == 1
    shutil.move("multirun/a/conf", "multirun/a/away")
    code, _, err = cli("rerun", "a", "--trial", "0")
    assert code == 2
    assert "conf/0 is gone" in err
    shutil.move("multirun/a/away", "multirun/a/conf")


def test_the_command_warns_of_other_code_and_other_games(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "games.sgf").write_text(SGF)
    rates = FloatDistribution(0.01, 0.1)
    space = Space(
        (Parameter("lr", rates, "interval(0.01,0.1)", is_interval=True),),
        fixed=("data=sgf", "data.path=games.sgf", "network=tiny", "logger=none"),
    )
    record = replace(
        make_record(space=space),
        conf=(f"file://{conf_dir()}",),
        cwd=str(work),
        folder=str(work / "s"),
        code={**code_version(), COMMIT_TAG: "abc123"},
        data={"games": "other than these"},
    )
    study, _ = create_study("sqlite:///lzsweep.db", "s", record, Budget(1))
    study.set_deciders(RandomSampler(seed=1), NopPruner())
    study.tell(must_claim(study), "complete", (0.5,))
    trained: list[dict[str, Any]] = []

    def train(config: dict[str, Any], folder: Path, **how: Any) -> dict[str, float]:
        trained.append(config)  # the training itself is compared above
        return {"loss": 0.75}

    monkeypatch.setattr(rerun, "train_recorded", train)
    code, out, err = cli("rerun", "s", "--trial", "0")
    assert code == 0, err
    warned = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert warned[0].startswith("warning: the study began with commit abc123, this is "), warned
    assert "warning: the games of data.path=games.sgf are not those of the study" in warned
    assert "loss: 0.500000 then, 0.750000 now: +0.25" in out
    assert [config["lr"] for config in trained] == [study.trials()[0].params["lr"]]


def test_what_differs_is_warned_of(work: Path, cache: Path) -> None:
    (work / "games.sgf").write_text(SGF)
    node = {"_target_": "lzsweep.train.data.GoData", "path": "games.sgf", "cache_dir": str(cache)}
    record = replace(make_record(), code=code_version(), data=data_version(node))
    assert not list(_differences(record, {"data": node}))
    (work / "games.sgf").write_text(SGF.replace("qn", "qo"))
    code = {**code_version(), COMMIT_TAG: "abc123", f"{VERSION_TAG}torch": "1.0"}
    other = replace(record, code=code)
    warned = list(_differences(other, {"data": node}))
    assert warned[0].startswith("the study began with commit abc123, torch 1.0, this is ")
    assert "the games of data.path=games.sgf are not those of the study" in warned
    (unknown,) = [w for w in _differences(record, {"data": {"_target_": "mine.D"}}) if "mine" in w]
    assert unknown == "nothing is known of the data of mine.D, then and now"
    with pytest.raises(DataError, match="nowhere"):
        list(_differences(record, {"data": {**node, "path": "nowhere.sgf"}}))

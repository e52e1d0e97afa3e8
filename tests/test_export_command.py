"""`lzsweep export` and `network.init_from`: trials, checkpoints and runs become weights files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from omegaconf import OmegaConf

from lzsweep.go.weights import read_weights, write_weights
from lzsweep.sweep.source import keep, settle_space
from lzsweep.sweep.space import Space
from lzsweep.train.export import read_checkpoint
from lzsweep.train.network import Network
from tests.go.network import random_weights
from tests.sweep.conftest import FAULTY, QUICK, Cli, cli, faulty  # noqa: F401
from tests.sweep.test_study import make_study
from tests.tracking.conftest import empty_database  # noqa: F401
from tests.train.test_export import checkpoint_of


def refused(cli: Cli, *arguments: str) -> str:  # noqa: F811
    code, out, err = cli(*arguments)
    assert (code, out) == (2, ""), (out, err)
    assert err.startswith("lzsweep: ")
    assert len(err.splitlines()) == 1, err
    return err


@pytest.mark.parametrize("name", ["net.txt", "net.txt.gz"])
def test_a_checkpoint_is_written_and_described(
    cli: Cli,  # noqa: F811
    work: Path,
    name: str,
) -> None:
    path = checkpoint_of(Network(1, 4), work / "x.ckpt")

    code, out, err = cli("export", "x.ckpt", "-o", name)

    assert (code, err) == (0, "")
    size = (work / name).stat().st_size
    assert out == f"{name}: 1 blocks x 4 filters, {size:,} bytes\nplay with it: leelaz -w {name}\n"
    write_weights(work / "same.txt.gz", read_checkpoint(path))
    write_weights(work / "again.txt.gz", read_weights(work / name))
    assert (work / "again.txt.gz").read_bytes() == (work / "same.txt.gz").read_bytes()
    assert not list(work.glob("*.part"))


def test_mistakes_are_one_line(cli: Cli, work: Path) -> None:  # noqa: F811
    def told(*arguments: str) -> str:
        return refused(cli, "export", *arguments, "-o", "net.txt")

    assert "there is no study database sqlite:///lzsweep.db" in told("demo")
    assert "must exist at outputs/x" in told("outputs/x")
    assert "must exist at x.ckpt" in told("x.ckpt")
    (work / "run").mkdir()
    assert "run's folder must hold checkpoints/best.ckpt" in told("run")
    assert "--trial belongs to a study's name" in told("run", "--trial", "1")
    write_weights(work / "other.txt", random_weights(0, 2))
    assert "must be given to export, but other.txt is none" in told("other.txt")
    torch.save({"state_dict": {}}, work / "other.ckpt")
    assert "is one of another module" in told("other.ckpt")
    network = Network(0, 2)
    torch.nn.init.constant_(network.value_out.bias, torch.inf)
    checkpoint_of(network, work / "inf.ckpt")
    assert "inf.ckpt: value output bias must be finite" in told("inf.ckpt")
    assert not (work / "net.txt").exists()
    assert "the folder of no/net.txt must exist" in refused(
        cli, "export", "inf.ckpt", "-o", "no/net.txt"
    )
    assert "there is no run " + "0" * 32 in told("0" * 32)


def test_a_study_may_have_a_slash_in_its_name(cli: Cli, work: Path) -> None:  # noqa: F811
    make_study("sqlite:///lzsweep.db", name="team/s")
    err = refused(cli, "export", "team/s", "--trial", "7", "-o", "net.txt")
    assert "team/s has no trial 7, only none yet" in err
    assert "must exist at team/t" in refused(cli, "export", "team/t", "-o", "net.txt")
    (work / "team/s").mkdir(parents=True)
    assert "run's folder must hold" in refused(cli, "export", "team/s", "-o", "net.txt")


def test_init_from_is_checked_before_anything_starts(cli: Cli, work: Path) -> None:  # noqa: F811
    write_weights(work / "net.txt.gz", random_weights(1, 4))
    wrong = ("network=tiny", "network.init_from=net.txt.gz")
    fits = "set network.blocks=1 network.filters=4"
    assert fits in refused(cli, *wrong)
    code, _, err = cli("-m", "study.name=s", "lr=0.1,0.2", *wrong)
    assert code == 2
    assert fits in err
    assert not (work / "multirun" / "s").exists()
    assert "must exist at no/where" in refused(cli, "network.init_from=no/where")
    assert "must exist at no.ckpt" in refused(cli, "network.init_from=no.ckpt")
    assert "nowhere must be a checkpoint, a" in refused(cli, "network.init_from=nowhere")
    make_study("sqlite:///lzsweep.db", name="t")
    assert "none of t has yet" in refused(cli, "network.init_from=t")
    (work / "torn.txt").write_text("1\n0.5 x\n")
    assert "torn.txt:2: a row must hold numbers only" in refused(cli, "network.init_from=torn.txt")


def test_a_sweep_may_start_from_a_name(work: Path) -> None:
    storage = "sqlite:///lzsweep.db"
    cfg = OmegaConf.create({"study": {"storage": storage}, "tracking": {"uri": "unused"}})

    def settled(*fixed: str) -> tuple[tuple[str, ...], list[str]]:
        space, problems = settle_space(Space((), fixed), cfg)
        return space.fixed, problems

    write_weights(work / "net.txt", random_weights(0, 2))
    plain = (
        "lr=1",
        "network.init_from=net.txt",
        "network.init_from=null",
        "network.init_from=x.gz",
    )
    assert settled(*plain) == (plain, []), "whoever checks the points says which are missing"
    fixed, (problem,) = settled("network.init_from=nowhere", "lr=1")
    assert fixed == ("lr=1",)
    assert "network.init_from: nowhere must be a checkpoint, a run's folder, an MLflow" in problem
    make_study(storage, name="s")
    _, (problem,) = settled("+network.init_from=s")
    assert "a trial must complete to be the best, but none of s has yet" in problem


@pytest.mark.slow
def test_a_study_a_trial_and_a_run_are_exported(cli: Cli, work: Path) -> None:  # noqa: F811
    cli.sweep("study.name=s", "network=tiny", "lr=0.001,0.05", "hydra/sweeper/pruner=none")
    trials = {t["number"]: t for t in cli.status("s")["trials"]}
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    for number, trial in trials.items():
        folder = work / "multirun" / "s" / str(number)
        exported = (folder / "weights.txt.gz").read_bytes()
        got = client.download_artifacts(trial["run_id"], "weights.txt.gz", str(work))
        assert Path(got).read_bytes() == exported
        for what in (["s", "--trial", str(number)], [trial["run_id"]], [str(folder)]):
            code, _, err = cli("export", *what, "-o", "net.txt.gz")
            assert code == 0, err
            assert (work / "net.txt.gz").read_bytes() == exported
        notes = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        assert [n["path"] for n in notes if n["type"] == "artifact"].count("weights.txt.gz") == 1

    best = min(trials, key=lambda number: trials[number]["values"][0])
    expected = (work / "multirun" / "s" / str(best) / "weights.txt.gz").read_bytes()
    # What a study's folder has lost is still with MLflow.
    shutil.rmtree(work / "multirun" / "s" / str(best))
    code, out, err = cli("export", "s", "-o", "net.txt.gz")
    assert code == 0, err
    assert "2 blocks x 16 filters" in out
    assert (work / "net.txt.gz").read_bytes() == expected
    assert "s has no trial 7, only 0, 1" in refused(
        cli, "export", "s", "--trial", "7", "-o", "x.txt"
    )

    # By whatever name, it is the same network, and stays so when the name comes to mean another.
    cfg = OmegaConf.create(
        {"study": {"storage": "sqlite:///lzsweep.db"}, "tracking": {"uri": "sqlite:///mlflow.db"}}
    )
    run_id = trials[best]["run_id"]
    kept = {keep(what, cfg.study.storage, cfg.tracking.uri) for what in ("s", run_id)}
    (path,) = kept
    write_weights(work / "kept.txt.gz", read_checkpoint(Path(path)))
    assert (work / "kept.txt.gz").read_bytes() == expected
    fixed = ("network=tiny", "network.init_from=s", "network.init_from=null", "lr=1")
    space, problems = settle_space(Space((), fixed), cfg)
    assert space.fixed == ("network=tiny", f"network.init_from={path}", *fixed[2:])
    assert not problems

    code, out, err = cli(*QUICK, "network=tiny", f"network.init_from={run_id}")
    assert code == 0, err
    (run,) = work.glob("outputs/*-*/*")
    assert f"play with it: leelaz -w {run / 'weights.txt.gz'}" in out
    assert read_weights(run / "weights.txt.gz").filters == 16

    again = (*QUICK, "network=tiny", f"network.init_from={run_id}", f"hydra.run.dir={run}")
    told = refused(cli, *again, "lr=0.5", "network.filters=4")
    assert "holds one with module.lr=0.05 (now 0.5), module.network.filters=16 (now 4);" in told
    assert cli(*again)[0] == 0, "the same words go on"


@pytest.mark.slow
def test_a_pruned_trial_leaves_its_best_network_too(cli: Cli, work: Path) -> None:  # noqa: F811
    code, _, err = cli(
        "-m", *QUICK, "study.name=p", "network=tiny", "lr=0.01,0.02",
        "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=0",
        "+hydra.sweeper.pruner.n_warmup_steps=2",
    )  # fmt: skip
    assert (code, err) == (1, "lzsweep: no trial of study p completed\n")
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    for trial in cli.status("p")["trials"]:
        assert trial["state"] == "pruned"
        artifacts = {artifact.path for artifact in client.list_artifacts(trial["run_id"])}
        assert artifacts == {"config.yaml", "weights.txt.gz"}

    code, out, err = cli("promote", "p", "--trial", "0")
    assert code == 0, err
    assert out.startswith("note: trial 0 was pruned; none completed\n")
    version = client.get_model_version_by_alias("p", "champion")
    assert version.tags["lzsweep.state"] == "pruned"
    assert float(version.tags["val/loss_unweighted"]) > 0
    assert "Trial 0 of the study `p`: val/loss_unweighted=" in str(version.description)


def test_what_has_no_network_is_told_so(
    cli: Cli,  # noqa: F811
    faulty: Path,  # noqa: F811
) -> None:
    code, _, err = cli("-m", *FAULTY, "study.name=bad", "module.at=1", "module.fault=none,error")
    assert code == 0, err
    (failed,) = (t for t in cli.status("bad")["trials"] if t["state"] == "failed")
    number = str(failed["number"])
    for _ in range(2):
        for command in (["export", "bad", "-o", "x.txt"], ["promote", "bad"]):
            err = refused(cli, *command, "--trial", number)
            assert f"but trial {number} of bad failed ({failed['reason']}) and has none" in err
            assert f"see `lzsweep status bad --trial {number}`" in err
        shutil.rmtree(failed["folder"], ignore_errors=True)
    err = refused(cli, "export", failed["run_id"], "-o", "x.txt")
    assert "must have the artifact checkpoints/best.ckpt, but has none" in err


@pytest.mark.slow
def test_a_trial_that_fails_leaves_its_best_network_too(
    cli: Cli,  # noqa: F811
    work: Path,
) -> None:
    """Whether its process could still say something, or was killed, or is just gone."""
    code, _, err = cli(
        "-m", *QUICK, "study.name=f", "network=tiny", "worker.slots=2", "worker.trial_timeout=15",
        "+callbacks.strike._target_=tests.sweep.faulty.Strike",
        "+callbacks.strike.fault=error,hang,exit",
    )  # fmt: skip
    assert (code, err) == (1, "lzsweep: no trial of study f completed\n")
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    trials = cli.status("f")["trials"]
    for trial, reason in zip(trials, ("ValueError", "killed after", "the process e"), strict=True):
        assert trial["reason"].startswith(reason)
        got = client.download_artifacts(trial["run_id"], "weights.txt.gz", str(work))
        best = Path(trial["folder"]) / "checkpoints" / "best.ckpt"
        write_weights(work / "best.txt.gz", read_checkpoint(best))
        assert Path(got).read_bytes() == (work / "best.txt.gz").read_bytes()

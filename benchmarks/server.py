"""A real MLflow server for the time of a measurement."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lzsweep.errors import TrackingError
from lzsweep.tracking.runs import check_server

START_S = 300.0


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Start `mlflow server` with one process, on SQLite, and give its address."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight idle processes
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _await(server, uri := f"http://127.0.0.1:{port}", folder / "log")
            yield uri
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # it and what it started; its files go anyway
            server.wait()


def _await(server: subprocess.Popen[bytes], uri: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            check_server(uri)
            return
        except TrackingError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{error}\n{log.read_text()[-2000:]}") from error
            time.sleep(0.5)

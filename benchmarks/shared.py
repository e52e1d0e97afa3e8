"""A real `lzsweep serve --shared` for the time of a measurement or a test.

It runs as an ordinary user, because PostgreSQL refuses root: who is root lends it the user nobody
and a folder that this one may write.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

NOBODY = 65534
START_S = 300.0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def as_ordinary_user(*command: str) -> list[str]:
    if os.geteuid() != 0:
        return list(command)
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *ids, "--", *command]


def serve_command(*arguments: str) -> list[str]:
    return as_ordinary_user(sys.executable, "-m", "lzsweep", "serve", *arguments)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that the ordinary user may write, and reach from the root of the file system."""
    folder = Path(tempfile.mkdtemp(prefix="lzsweep-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class SharedServer:
    """A shared server, which may be killed and started again at the same ports.

    Args:
        folder: of `open_folder`.
        options: further ones of `serve --shared`.
        environment: further variables for it.
    """

    def __init__(
        self, folder: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.home = folder / "home"
        self.log = folder / "serve.log"
        self.port, self.postgres_port = free_port(), free_port()
        self._options = options
        self._environment = {**os.environ, "HOME": str(folder), **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return self.environment["MLFLOW_TRACKING_URI"]

    @property
    def environment(self) -> Mapping[str, str]:
        """What users export."""
        lines = (self.home / "users.env").read_text().splitlines()
        pairs = (shlex.split(line)[1].partition("=") for line in lines)
        return {name: value for name, _, value in pairs}

    @property
    def secrets(self) -> Mapping[str, str]:
        known: dict[str, str] = json.loads((self.home / "secrets.json").read_text())
        return known

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        ports = ["--port", str(self.port), "--postgres-port", str(self.postgres_port)]
        command = serve_command("--shared", *ports, "--home", str(self.home), *self._options)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                cwd=self.home.parent,
                env=self._environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_S
        while "users.env" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.log.read_text())
            time.sleep(0.1)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `lzsweep serve ARGUMENTS` beside it, over the same home."""
        where = ["--shared", "--home", str(self.home), "--postgres-port", str(self.postgres_port)]
        return subprocess.run(
            serve_command(*arguments, *where),
            env=self._environment,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
        )

    def family(self) -> list[psutil.Process]:
        """Its processes, PostgreSQL's too."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def kill(self) -> None:
        """End all of its processes at once, by SIGKILL."""
        if self.process is None or self.process.poll() is not None:
            return
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as Ctrl-C in a service does; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def connect(self) -> psycopg.Connection:
        """A connection to MLflow's database, as its owner."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.postgres_port,
            dbname="mlflow",
            user="mlflow",
            passfile=str(self.home / "pgpass"),
            connect_timeout=10,
            autocommit=True,
        )


@contextmanager
def shared_server(*options: str) -> Iterator[SharedServer]:
    """Start a shared server in a folder of its own."""
    with open_folder() as folder:
        server = SharedServer(folder, *options)
        try:
            server.start()
            yield server
        finally:
            server.kill()

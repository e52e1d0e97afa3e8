"""One real sweep, and one real server over what it wrote, for all tests here."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from lzsweep.cli import main
from lzsweep.sweep.page import PAGE_NAME, REPORT_NAME
from tests.sweep.conftest import QUICK, Cli, cli

__all__ = ["cli"]

STUDY = "späte <b>Partie</b> 🎉"
"""What a name may hold: no ASCII, signs of HTML, a picture."""


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished sweep of three trials, one of which failed."""
    folder = tmp_path_factory.mktemp("swept")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.chdir(folder)
        code = main(
            [
                "-m",
                *QUICK,
                f"study.name='{STUDY}'",
                "hydra.sweep.dir=multirun/late",
                "network.blocks=1",
                "network.filters=choice(4,8)",
                "lr=choice(0.01,1e30)",  # the second loses its numbers
                "hydra/sweeper/pruner=none",
                "worker.slots=2",
            ]
        )
        assert code == 0
        assert f"report: multirun/late/{REPORT_NAME}/{PAGE_NAME}" in said.getvalue()
        assert "compare all trials: " in said.getvalue()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture
def here(cli: Cli, swept: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, in the folder of the sweep."""
    monkeypatch.chdir(swept)
    return cli


@dataclass
class Served:
    """A server that runs as its own process."""

    uri: str
    process: subprocess.Popen[str]
    log: Path


def start_server(*arguments: str, folder: Path, log: Path) -> Served:
    """Start `lzsweep serve` and wait until it says that it is ready."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "lzsweep", "serve", "--port", "0", *arguments],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    with log.open() as lines:
        while True:
            line = lines.readline()
            if "ready at " in line:
                return Served(line.split("ready at ")[1].split()[0], process, log)
            if not line and process.poll() is not None:
                raise AssertionError(log.read_text())
            if not line:
                signal.sigtimedwait([], 0.1)  # a pause that a signal ends


@pytest.fixture(scope="session")
def server(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server over the files that the sweep wrote without one."""
    served = start_server(folder=swept, log=tmp_path_factory.mktemp("log") / "serve.log")
    yield served
    served.process.kill()
    served.process.wait()

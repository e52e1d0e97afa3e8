"""Sweeps in processes of their own, which can be killed: forks that share one forkserver.

Importing torch takes tens of seconds, so a fork has its trials forked from the forkserver of the
tests. That one does not end with the fork; all else of a worker and its trials does.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import psutil

from lzsweep.cli import main
from lzsweep.sweep.forkserver import await_forkserver, start_forkserver
from tests.sweep import faulty  # noqa: F401  # imports torch, once for all forks
from tests.sweep.test_sweep import trial_processes, wait_for

CLONE_NEWUTS = 0x04000000


class Fork:
    """A command line in a process group of its own; what it prints is in `output`."""

    def __init__(
        self, *command: str, host: str = "", begin: Callable[[], None] | None = None
    ) -> None:
        start_forkserver()
        await_forkserver()
        self._command = command
        self._host = host
        self._begin = begin
        self.output = Path(f"output-{os.urandom(4).hex()}").absolute()
        self.output.touch()
        self.process = multiprocessing.get_context("fork").Process(target=self._run)
        self.process.start()

    def _run(self) -> None:
        os.setsid()
        if self._host and ctypes.CDLL(None).unshare(CLONE_NEWUTS) == 0:
            socket.sethostname(self._host)
        file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        # The forkserver is running, but it is no child of ours.
        forkserver.ensure_running = forkserver._forkserver.ensure_running = int  # type: ignore
        if self._begin:
            self._begin()
        os._exit(main(self._command))

    def signal(self, number: int) -> None:
        """Send a signal to the whole group, as a terminal does."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def exit_code(self) -> int | None:
        self.process.join(120)
        return self.process.exitcode

    def says(self, text: str) -> bool:
        return text in self.output.read_text()


StartFork = Callable[..., Fork]


def trials_in(folder: Path) -> list[psutil.Process]:
    """Processes of trials whose log lies below a folder."""
    found = []
    for process in trial_processes():
        try:
            if Path(f"/proc/{process.pid}/fd/1").readlink().is_relative_to(folder):
                found.append(process)
        except OSError:
            continue
    return found


def kill_trials(folder: Path) -> None:
    for process in trials_in(folder):
        process.send_signal(signal.SIGKILL)


def wait_for_trials(work: Path, n: int) -> None:
    """Until so many trials of `fault=wait` wait in the middle of their training."""
    wait_for(lambda: len(list(work.glob("waiting-*"))) >= n, timeout_s=400)


def let_go_on(work: Path) -> None:
    (work / "go on").touch()

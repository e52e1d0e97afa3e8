"""The networks that trials leave for the engine, written beside whatever trains next.

A network as text takes the engine's file a tenth of a second, a large one half a minute. So a
trial's process ends without it, its device is free, and a process that touches no device reads
the best checkpoint. Whoever dies in between leaves a trial that has everything else; the last
worker of the study publishes what is missing.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lzsweep.config import BEST_CHECKPOINT, LAST_CHECKPOINT, WEIGHTS_FILE
from lzsweep.sweep.forkserver import exit_code, kill, start
from lzsweep.sweep.output import lent_output
from lzsweep.sweep.trial import LOG_NAME, die_with_forkserver

PUBLISH_S = 600.0
"""Time that a network may take."""

_logger = logging.getLogger(__name__)


class Publisher:
    """Publishes the networks of trials, one after another; any thread may ask for one.

    No trial is lost over it: what goes wrong is a warning, or a line in the trial's log.

    Args:
        when_done: told the folder of each network that was published.
    """

    def __init__(self, when_done: Callable[[Path], object]) -> None:
        self._when_done = when_done
        self._thread = ThreadPoolExecutor(1, "publisher")
        self._taken: set[Path] = set()
        self._deadline = math.inf
        self._closing = threading.Event()
        self._process: ForkServerProcess | None = None  # this and its pipe are the thread's own
        self._pipe: Connection | None = None

    def add(self, folder: Path, *, after_s: float = 0.0) -> Future[None]:
        """Publish the network of a trial that has ended, if it has one; returns at once.

        Args:
            folder: of the trial.
            after_s: seconds for which to leave the cores to what is more urgent.
        """
        self._taken.add(folder)
        return self._thread.submit(self._guard, folder, time.monotonic() + after_s)

    def add_missing(self, folders: Iterable[Path]) -> None:
        """Publish what others, or this worker on an earlier day, did not come to."""
        for folder in folders:
            if folder not in self._taken and not (folder / WEIGHTS_FILE).exists():
                self.add(folder)

    def hurry(self, timeout_s: float) -> None:
        """Give what was asked for and what will be no more than this time."""
        self._deadline = min(self._deadline, time.monotonic() + timeout_s)
        self._closing.set()

    def close(self, timeout_s: float = PUBLISH_S) -> None:
        """Wait for what was asked for; what takes longer is left undone."""
        self.hurry(timeout_s)
        self._thread.submit(self._end)
        self._thread.shutdown()

    def _guard(self, folder: Path, begin: float) -> None:
        self._closing.wait(max(0.0, begin - time.monotonic()))
        try:
            try:
                self._publish(folder)
            except ChildProcessError:  # perhaps for another one, or from outside
                self._end()
                self._publish(folder)
        except Exception as error:  # no room for a process more, say
            _logger.warning("no weights for the engine of %s: %s", folder, error)
            self._end()

    def _publish(self, folder: Path) -> None:
        limit_s = min(PUBLISH_S, self._deadline - time.monotonic())
        names = (BEST_CHECKPOINT, LAST_CHECKPOINT)
        if limit_s <= 0 or not any((folder / name).exists() for name in names):
            return
        if not self._is_alive():
            self._end()
            self._start()
        assert self._process and self._pipe
        with suppress(BrokenPipeError):  # as at the answer
            self._pipe.send(folder)
        give_up = time.monotonic() + limit_s
        while not wait([self._pipe, self._process.sentinel], timeout=0.5):
            if time.monotonic() > min(give_up, self._deadline):
                raise TimeoutError("it was not written in time")
        try:
            self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise ChildProcessError("the process that writes it was killed") from None
        if (folder / WEIGHTS_FILE).exists():
            self._when_done(folder)

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_publish_all, args=(child,), name="publisher")
        start(self._process)
        child.close()

    def _is_alive(self) -> bool:
        return self._process is not None and exit_code(self._process) is None

    def _end(self) -> None:
        if self._pipe:
            self._pipe.close()
        if self._process and self._process.pid:
            kill(self._process)
        self._process = self._pipe = None


def _publish_all(pipe: Connection) -> None:
    """Publish the networks of the folders that the worker names, as long as it is there."""
    import torch  # the forkserver has imported these

    from lzsweep.train.export import publish

    die_with_forkserver()
    os.nice(5)  # the trials come first
    torch.set_num_threads(1)
    with suppress(EOFError):
        while True:
            folder: Path = pipe.recv()
            with suppress(OSError), lent_output(folder / LOG_NAME):
                try:
                    publish(folder)
                except Exception as error:  # want of memory, say, which ended the training as well
                    print(f"no weights for the engine: {error}")
            pipe.send(None)

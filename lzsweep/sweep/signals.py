"""The signals of a worker, which has them alone: its trials and their forkserver ignore them.

Whoever set handlers before (submitit, which requeues the job at USR2) is asked once the trials
are back in the study, not sooner.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

import psutil
from rich.console import Console

_ALWAYS = (signal.SIGINT, signal.SIGTERM)
_IF_HANDLED = (signal.SIGUSR1, signal.SIGUSR2)

_logger = logging.getLogger(__name__)


class Signals:
    """Sets an event at the first signal; hands over to the earlier owner at the end.

    At a terminal a second signal ends everything at once. A job hears several in a row from its
    cluster, and they all mean the first.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._came: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def is_job(self) -> bool:
        """Whether somebody is there who requeues: submitit."""
        return any(number in self._before for number in _IF_HANDLED)

    def __enter__(self) -> Self:
        handled = [n for n in _IF_HANDLED if callable(signal.getsignal(n))]
        self._before = {n: signal.signal(n, self._handle) for n in (*_ALWAYS, *handled)}
        # What a launcher made may have been born with it blocked; now it is heard.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on(self, is_kept: Callable[[], bool]) -> None:
        """Let submitit requeue the job if a signal asks for that; then it does not return.

        TERM comes with a cancellation and with a requeue by the cluster itself, where the job's
        end is all that is wanted, but also as the first notice of a preemption, whose job is lost
        to the sweep if it just ends.

        Args:
            is_kept: whether the cluster still lets the job run.
        """
        if self._came in _IF_HANDLED or (
            self._came == signal.SIGTERM and self.is_job and is_kept()
        ):
            self.requeue()

    def requeue(self) -> None:
        """Have submitit requeue the job; returns only where there is no job."""
        for number in _IF_HANDLED:
            if number in self._before:
                self._before[number](number, None)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._came is not None and not self.is_job:
            _end_at_once()
        # A request to requeue outweighs what came before it.
        if self._came is None or number in _IF_HANDLED:
            self._came = number
        if self.is_job and self._stopping.is_set():
            return
        self._stopping.set()
        _say(number, "" if self.is_job else "; once more to end at once")


@contextmanager
def left_to_workers() -> Iterator[None]:
    """Leave Ctrl-C to workers that are processes of this terminal, which tells them itself.

    What is started meanwhile is born deaf to it: of the launchers' own processes, some would kill
    their workers in the middle of a checkpoint. A worker that is there hears it again, also what
    came while it was being made. The second time all of them are killed.
    """
    came, done = threading.Event(), threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        if came.is_set():
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
            _end_at_once()
        came.set()
        _say(number, "; once more to end at once")

    # The mask is a thread's own, and one that does not have it must be there to take the signal.
    ears = threading.Thread(target=done.wait, name="ears", daemon=True)
    ears.start()
    before = signal.signal(signal.SIGINT, handle)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        done.set()


def _say(number: int, more: str) -> None:
    name = signal.Signals(number).name
    print(f"{name}: trials write a checkpoint and go back to the study{more}", file=sys.stderr)


def _end_at_once() -> NoReturn:
    Console().show_cursor()  # the live table hides it
    os._exit(1)  # the trials' processes end with their pipes

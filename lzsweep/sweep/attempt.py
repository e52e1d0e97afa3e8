"""One attempt at a trial, as its worker sees it: start the process, follow it, judge its end."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

from lzsweep.sweep.trial import End, Report, Spec, Started, Word, run_trial

GRACE_AFTER_END_S = 20.0
"""Time a trial's process has to go away after its last word."""

_logger = logging.getLogger(__name__)
# A process's start looks at the exit codes of all others, and reading one twice loses it.
_processes = threading.Lock()


class Attempt:
    """A running trial process and the pipe to it; used by one slot's thread, stopped by any."""

    def __init__(self, spec: Spec) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, child = context.Pipe()
        self._process: ForkServerProcess = context.Process(
            target=run_trial, args=(spec, child), name=f"trial {spec.folder}"
        )
        self._end: End | None = None
        self._is_gone = False
        self._stop_sent = False
        with _processes:
            self._process.start()
        child.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def follow(
        self,
        answer: Callable[[Report], Word],
        is_stopping: Callable[[], bool],
        timeout_s: float | None,
    ) -> End:
        """Serve the process until it ends.

        Args:
            answer: says what to do after a report.
            is_stopping: whether the trial is to checkpoint and end.
            timeout_s: seconds of training after which it is killed.

        Returns:
            Its last word, or what its death means.
        """
        deadline: float | None = None
        try:
            while self._end is None and not self._is_gone:
                if is_stopping():
                    self.stop()
                if deadline is not None and time.monotonic() > deadline:
                    self.kill()
                    return End("error", f"killed after worker.trial_timeout={timeout_s:g} s")
                message = self._next_message()
                if isinstance(message, Started) and timeout_s:
                    deadline = time.monotonic() + timeout_s
                elif isinstance(message, Report):
                    self._send(answer(message))
                elif isinstance(message, End):
                    self._end = message
            wait([self._process.sentinel], GRACE_AFTER_END_S)
            self.kill()
            return self._end or self._died_of(self._exit_code())
        finally:
            self.kill()
            self._pipe.close()

    def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        if not self._stop_sent:
            self._stop_sent = True
            self._send("stop")

    def kill(self) -> None:
        """End the process now; returns when it is gone."""
        with _processes:
            if self._process.exitcode is None:
                self._process.kill()
                wait([self._process.sentinel])

    def _next_message(self) -> Started | Report | End | None:
        ready = wait([self._pipe, self._process.sentinel], timeout=0.2)
        # Words sent before the end are read first. The sentinel tells of a death even when a
        # grandchild keeps the pipe open.
        if self._pipe in ready:
            try:
                message: Started | Report | End = self._pipe.recv()
                return message
            except (EOFError, OSError):
                self._is_gone = True
        elif ready:
            self._is_gone = True
        return None

    def _send(self, word: Word) -> None:
        try:
            self._pipe.send(word)
        except (BrokenPipeError, OSError):
            _logger.debug("the trial's process went away before it heard %r", word)

    def _exit_code(self) -> int:
        with _processes:
            return self._process.exitcode or 0

    def _died_of(self, code: int) -> End:
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            return End("killed", f"killed from outside by {_name(code)}")
        if code == 0:
            return End("killed", "the process was ended from outside")
        if code < 0:
            return End("error", f"the process crashed with {_name(code)}")
        return End("error", f"the process ended with exit code {code} and no result")


def _name(code: int) -> str:
    return signal.Signals(-code).name

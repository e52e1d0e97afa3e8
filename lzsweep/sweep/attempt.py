"""One attempt at a trial, as its worker sees it: start the process, follow it, read its end."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lzsweep.sweep.forkserver import process_lock
from lzsweep.sweep.memory import memory_over, oom_kills
from lzsweep.sweep.output import bound_log
from lzsweep.sweep.trial import (
    LOG_NAME,
    End,
    Report,
    Spec,
    Started,
    Word,
    kill_session,
    run_trial,
)

GRACE_AFTER_END_S = 20.0
"""Time a trial's process has to go away after its last word."""
LOOK_S = 0.5
"""Time between two looks at what a trial takes: time, memory, log."""
GB = 2**30
OUT_OF_MEMORY = "out of memory"
FORKSERVER_LOST = 255
"""What multiprocessing says of a process whose exit code nobody will tell any more."""

_logger = logging.getLogger(__name__)
_explained = 0  # how many of the kernel's memory kills were found to be which trial's


class Attempt:
    """A running trial process and the pipe to it; used by one slot's thread, stopped by any.

    Args:
        spec: what to train, and where.
        timeout_s: seconds of training after which it is killed.
        memory_gb: own memory of its processes over which it is killed, in units of 2**30 bytes.
    """

    def __init__(
        self, spec: Spec, *, timeout_s: float | None = None, memory_gb: float | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, child = context.Pipe()
        self._process: ForkServerProcess = context.Process(
            target=run_trial, args=(spec, child), name=f"trial {spec.folder}"
        )
        self._folder = Path(spec.folder)
        self._log = self._folder / LOG_NAME
        self._timeout_s = timeout_s
        self._memory_gb = memory_gb
        self._began: float | None = None
        self._paused_s = 0.0
        self._looked = 0.0
        self._end: End | None = None
        self._is_gone = False
        self._is_swept = False
        self._stop_sent = False
        self._has_reported = False
        self._interruption = ""
        self._oom_kills = oom_kills()
        with process_lock:
            self._process.start()
        child.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def follow(self, answer: Callable[[Report], Word], is_stopping: Callable[[], bool]) -> End:
        """Serve the process until it ends.

        Args:
            answer: says what to do after a report.
            is_stopping: whether the trial is to checkpoint and end.

        Returns:
            Its last word, or what its death means.
        """
        try:
            while self._end is None and not self._is_gone:
                if is_stopping():
                    self.stop()
                if end := self._over_limit():
                    return end
                message = self._next_message()
                if isinstance(message, Started):
                    self._began = time.monotonic()
                elif isinstance(message, Report):
                    self._has_reported = True
                    asked = time.monotonic()
                    self._send(answer(message))
                    self._paused_s += time.monotonic() - asked  # a lost database takes its time
                elif isinstance(message, End):
                    self._end = message
            wait([self._process.sentinel], GRACE_AFTER_END_S)
            self.kill()  # and with it what still prints
            bound_log(self._log)
            return self._blame_memory(self._end) if self._end else self._died_of(self._exit_code())
        finally:
            self.kill()
            self._pipe.close()

    def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        if not self._stop_sent:
            self._stop_sent = True
            self._send("stop")

    def interrupt(self, reason: str) -> None:
        """End the process now, whatever it does; the trial goes on from its last checkpoint.

        It was stopped if it came as far as a rung, else killed: so nobody is interrupted for ever.
        """
        self._interruption = reason
        self.kill()

    def kill(self) -> None:
        """End the process and what it has started now; returns when it is gone."""
        with process_lock:
            pid = self._process.pid
            if self._process.exitcode is None:
                self._process.kill()
                wait([self._process.sentinel])
            if pid and not self._is_swept:
                self._is_swept = True
                kill_session(pid)  # what it started and left behind

    def _over_limit(self) -> End | None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return None
        self._looked = now
        bound_log(self._log)
        train_s = now - self._began - self._paused_s if self._began else 0.0
        if self._timeout_s and train_s > self._timeout_s:
            reason = f"killed after worker.trial_timeout={self._timeout_s:g} s"
            return End("error", reason, train_s=train_s)
        if not self._memory_gb or not self.pid:
            return None
        if taken := memory_over(self.pid, self._memory_gb * GB):
            reason = (
                f"{OUT_OF_MEMORY}: took {taken / GB:.3g} GB of"
                f" worker.trial_memory_gb={self._memory_gb:g}"
            )
            return End("infeasible", reason, train_s=train_s)
        return None

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
        with process_lock:
            return self._process.exitcode or 0

    def _blame_memory(self, end: End) -> End:
        # The kernel takes the largest process, which may be one that loads data for the trial.
        if end.kind == "error" and "killed by signal" in end.reason and self._was_oom_kill():
            return replace(end, kind="infeasible", reason=f"{OUT_OF_MEMORY}: {end.reason}")
        return end

    def _died_of(self, code: int) -> End:
        if self._interruption:
            return End("stopped" if self._has_reported else "killed", self._interruption)
        train_s = time.monotonic() - self._began - self._paused_s if self._began else 0.0
        if code == -signal.SIGKILL and self._was_oom_kill():
            return End("infeasible", f"{OUT_OF_MEMORY}: the kernel killed it", train_s=train_s)
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            return End("killed", f"killed from outside by {_name(code)}")
        if code == FORKSERVER_LOST:
            return End("killed", "the process that trials are forked from was lost")
        if code < 0:
            reason = f"the process crashed with {_name(code)}"
        else:
            reason = f"the process ended with exit code {code} and no result"
        return End("error", reason, train_s=train_s)

    def _was_oom_kill(self) -> bool:
        """Whether the kernel killed for want of memory and nobody else here was the one."""
        global _explained
        with process_lock:
            _explained = max(_explained, self._oom_kills)
            if oom_kills() <= _explained:
                return False
            _explained += 1
            return True


def _name(code: int) -> str:
    return signal.Signals(-code).name

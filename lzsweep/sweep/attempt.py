"""Attempts at trials, as their worker sees them: start a process, follow it, read its end."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lzsweep.sweep.forkserver import DEATH_S, exit_code, kill, start
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
_explaining = threading.Lock()
_explained = 0  # how many of the kernel's memory kills were found to be which trial's


class Attempts:
    """The attempts of one slot, one after the other; used by the slot's thread alone.

    To fork takes as long as to ask for the next trial, and so does the death of a process. Neither
    is waited for: the next process is there before there is a trial for it, and the last one goes
    away while that is asked for. Nor does the next one take the time of a training that begins:
    `prepare` makes it once that is under way.

    Args:
        timeout_s: seconds of training after which an attempt is killed.
        memory_gb: own memory of its processes over which it is killed, in units of 2**30 bytes.
    """

    def __init__(self, *, timeout_s: float | None = None, memory_gb: float | None = None) -> None:
        self._new = partial(Attempt, timeout_s=timeout_s, memory_gb=memory_gb)
        self._next: Attempt | None = None
        self._last: Attempt | None = None
        self.goes_on = True
        """Whether there may be another attempt after the one that is begun."""

    def begin(self, spec: Spec) -> Attempt:
        """Begin an attempt, once the one before has left the device."""
        attempt, self._next = self._next, None
        if attempt is None or not attempt.is_alive:
            attempt = self._new()
        if self._last:
            self._last.close()
        self._last = attempt
        attempt.begin(spec)
        return attempt

    def prepare(self) -> None:
        """Fork the process of the next attempt, if there may be one."""
        if self._next or not self.goes_on:
            return
        try:
            self._next = self._new()
        except (OSError, EOFError) as error:  # no room for a process more, now
            _logger.debug("no process for the next attempt yet: %s", error)

    def close(self) -> None:
        """Let the processes go away."""
        for attempt in filter(None, (self._last, self._next)):
            attempt.close()
        self._last = self._next = None


class Attempt:
    """A trial's process and the pipe to it; used by one slot's thread, stopped by any.

    It is forked at once and waits for `begin`.

    Args:
        timeout_s: seconds of training after which it is killed.
        memory_gb: own memory of its processes over which it is killed, in units of 2**30 bytes.
    """

    def __init__(self, *, timeout_s: float | None = None, memory_gb: float | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, child = context.Pipe()
        self._process: ForkServerProcess = context.Process(
            target=run_trial, args=(child,), name="trial"
        )
        self._log: Path | None = None
        self._timeout_s = timeout_s
        self._memory_gb = memory_gb
        self._began: float | None = None
        self._paused_s = 0.0
        self._looked = 0.0
        self._end: End | None = None
        self._is_gone = False
        self._is_swept = False
        self._sweeping = threading.Lock()
        self._stop_sent = False
        self._has_reported = False
        self._interruption = ""
        self._oom_kills = 0
        start(self._process)
        child.close()

    @property
    def is_alive(self) -> bool:
        """Whether its process is there."""
        return exit_code(self._process) is None

    def begin(self, spec: Spec) -> None:
        """Let it train.

        Args:
            spec: what to train, and where.
        """
        self._log = Path(spec.folder) / LOG_NAME
        self._oom_kills = oom_kills()
        self._send(spec)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def follow(
        self,
        answer: Callable[[Report], Word],
        is_stopping: Callable[[], bool],
        when_under_way: Callable[[], object] = lambda: None,
    ) -> End:
        """Serve the process until its last word, after which it is to be closed, or its death.

        Args:
            answer: says what to do after a report.
            is_stopping: whether the trial is to checkpoint and end.
            when_under_way: called once what it takes to begin is behind it.

        Returns:
            Its last word, or what its death means.
        """
        is_under_way = False
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
                if self._began and not isinstance(message, Started | End) and not is_under_way:
                    is_under_way = True
                    when_under_way()
            if self._end:
                return self._blame_memory(self._end)
            self.close()
            return self._died_of(exit_code(self._process) or 0)
        finally:
            if self._end is None:
                self.kill()

    def close(self) -> None:
        """Wait until the process has gone away, if its training has ended; else end it."""
        if self._end or self._is_gone:
            wait([self._process.sentinel], GRACE_AFTER_END_S)
        self.kill()  # and with it what still prints
        self._pipe.close()
        if self._log:
            bound_log(self._log)

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
        """End the process and what it has started now; returns when it is gone, if it can be."""
        if not kill(self._process):
            _logger.warning(
                "process %s of %s was killed but is there after %g s: it hangs in the kernel, by a"
                " dead file system or device; see what on, and kill this worker if it stays so",
                self.pid,
                self._log and self._log.parent,
                DEATH_S,
            )
        with self._sweeping:
            if self.pid and not self._is_swept:
                self._is_swept = True
                kill_session(self.pid)  # what it started and left behind

    def _over_limit(self) -> End | None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return None
        self._looked = now
        if self._log:
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

    def _send(self, word: Spec | Word) -> None:
        try:
            self._pipe.send(word)
        except (BrokenPipeError, OSError):
            _logger.debug("the trial's process went away before it heard %r", word)

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
        with _explaining:
            _explained = max(_explained, self._oom_kills)
            if oom_kills() <= _explained:
                return False
            _explained += 1
            return True


def _name(code: int) -> str:
    return signal.Signals(-code).name

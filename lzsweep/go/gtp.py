"""A client for programs that play Go through GTP (version 2), safe against engines that misbehave.

An engine may die, hang, answer half a line, flood a pipe or leave children behind. Every command
has a time limit; whatever happens comes out as a `GtpError` that names the command and quotes the
engine's last words on stderr; and an engine that broke the protocol is killed with its children,
so that nothing can wait for it again. Both its pipes are emptied while a command runs, without
threads.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

from lzsweep.errors import LzsweepError

_MAX_REPLY_BYTES: Final = 4 << 20
_KEPT_NOTES_BYTES: Final = 1 << 20
_QUOTED_LINES: Final = 8
_READ_BYTES: Final = 1 << 16


class GtpError(LzsweepError):
    """The engine could not be started, or did not do what it was told."""


class GtpRefusedError(GtpError):
    """The engine answered with `?`; it can be asked on."""


class GtpDeadError(GtpError):
    """The engine died, hung or broke the protocol; it has been killed."""


class Engine:
    """One running engine; `ask` is the only thing to do with it until `close`.

    After a `GtpDeadError` no process is left, and each further `ask` raises the same again.

    Attributes:
        notes: What the engine wrote on stderr since the last command was sent (its last MiB).
    """

    def __init__(
        self, command: Sequence[str], *, timeout_s: float = 60.0, folder: Path | None = None
    ) -> None:
        """Start an engine.

        Args:
            command: The program and its arguments.
            timeout_s: How long a command may take unless `ask` says otherwise.
            folder: Working folder of the engine; by default our own.

        Raises:
            GtpError: if the program cannot be started.
        """
        self._name = Path(command[0]).name
        self._timeout_s = timeout_s
        self._dead: str | None = None
        self._n_asked = 0
        self._pending = b""
        self.notes = ""
        try:
            # A session of its own, so that a wrapper script dies with what it started.
            self._process = subprocess.Popen(
                list(command),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as e:
            raise GtpError(f"the engine {command[0]} cannot be started: {e.strerror}.") from e
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin = self._process.stdin.fileno()
        self._stdout = self._process.stdout.fileno()
        self._stderr = self._process.stderr.fileno()
        for pipe in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(pipe, False)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, command: str, *, timeout_s: float | None = None) -> str:
        """Send one command and give the text of its answer, without `=` and blank lines.

        Raises:
            GtpRefusedError: if the engine answers with `?`.
            GtpDeadError: if it dies, takes longer than the limit, or answers what is no GTP.
        """
        if "\n" in command or "\r" in command:
            raise ValueError(f"a GTP command must be one line, but got {command!r}.")
        if self._dead:
            raise GtpDeadError(self._dead)
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        self._n_asked += 1
        self.notes = ""
        answer = self._exchange(f"{self._n_asked} {command}\n".encode(), command, limit_s)
        status, _, text = answer.partition(" ")
        number = status[1:]
        if number and number != str(self._n_asked):
            self._fail(command, f"gave answer {number} to command {self._n_asked}")
        if status[0] == "?":
            raise GtpRefusedError(
                f"{self._name} refuses `{command}`: {text or 'no reason given'}."
            )
        return text

    def close(self, *, timeout_s: float = 2.0) -> None:
        """End the engine: with `quit` if it listens, by force if it has not gone in time."""
        if self._dead is None:
            with contextlib.suppress(GtpError):
                self.ask("quit", timeout_s=timeout_s)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        if self._dead is None:
            self._kill()
            self._dead = f"{self._name} was closed."

    def _exchange(self, data: bytes, command: str, limit_s: float) -> str:
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            selector.register(self._stdout, selectors.EVENT_READ)
            selector.register(self._stderr, selectors.EVENT_READ)
            while True:
                answer = self._take_answer(command)
                if answer is not None:
                    self._read_notes()
                    return answer
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    self._fail(command, f"gave no answer within {limit_s:g} s")
                for key, _ in selector.select(left_s):
                    if key.fd == self._stdin:
                        data = self._write(data, command)
                        if not data:
                            selector.unregister(self._stdin)
                    elif key.fd == self._stderr:
                        if not self._read_notes():
                            selector.unregister(self._stderr)
                    else:
                        self._read_answers(command)

    def _write(self, data: bytes, command: str) -> bytes:
        try:
            return data[os.write(self._stdin, data) :]
        except BlockingIOError:
            return data
        except OSError:
            self._fail(command, "died")

    def _read_answers(self, command: str) -> None:
        try:
            data = os.read(self._stdout, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._fail(command, "died")
        self._pending += data
        if len(self._pending) > _MAX_REPLY_BYTES:
            self._fail(command, f"answered with more than {_MAX_REPLY_BYTES} bytes")

    def _read_notes(self) -> bool:
        """Take what stderr holds now; False once it is closed."""
        while True:
            try:
                data = os.read(self._stderr, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.notes = (self.notes + data.decode("utf-8", "replace"))[-_KEPT_NOTES_BYTES:]
            if len(data) < _READ_BYTES:
                return True

    def _take_answer(self, command: str) -> str | None:
        """Cut the first whole answer out of what has come; lines before it are chatter."""
        text = self._pending.replace(b"\r", b"")
        start = 0
        while text[start : start + 1] not in (b"=", b"?"):
            start = text.find(b"\n", start) + 1
            if start == 0:
                return None
        end = text.find(b"\n\n", start)
        if end < 0:
            return None
        self._pending = text[end + 2 :]
        return text[start:end].decode("utf-8", "replace").rstrip()

    def _fail(self, command: str, what: str) -> NoReturn:
        with contextlib.suppress(OSError):
            self._read_notes()
        self._kill()
        code = self._process.returncode
        if what == "died":
            what = (
                f"died ({signal.Signals(-code).name})" if code < 0 else f"died (exit code {code})"
            )
        said = " | ".join(self.notes.splitlines()[-_QUOTED_LINES:]) or "nothing"
        self._dead = f"{self._name} {what} at `{command}`; its last words on stderr: {said}"
        raise GtpDeadError(self._dead)

    def _kill(self) -> None:
        if self._process.poll() is None:
            # It may be on its way out by itself; then its own exit code tells more than ours.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

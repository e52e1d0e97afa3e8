"""Delivery of journals to MLflow: at once, by a thread beside the work, or afterwards.

Logging never stops training: a `Sender` follows the journals of its folders from one daemon
thread, raises nothing and blocks nobody. While the server does not answer it waits, seconds at
first, half a minute at most, and the journals grow on disk. What is left when a program ends is
delivered by `sync`, whenever that is.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from lzsweep.errors import TrackingError
from lzsweep.tracking.client import Outage, connect, reason, redact, resolve_uri
from lzsweep.tracking.journal import JOURNAL_NAME
from lzsweep.tracking.outbox import Blocked, is_delivered, take_turn

_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 30.0
_BLOCKED_S = 60.0

_logger = logging.getLogger(__name__)


def deliver(folder: Path | str, uri: str, *, wait_s: float = 0) -> bool:
    """Send everything in one folder's journal that the server has not.

    Args:
        folder: Where the journal is.
        uri: The tracking server.
        wait_s: How long to wait for another process that is sending the same journal.

    Returns:
        Whether nothing is left; False if another process is at it.

    Raises:
        TrackingError: The server does not answer, or refuses this run. Nothing is lost.
    """
    try:
        while (turn := take_turn(Path(folder), uri, wait_s=wait_s)) == "more":
            pass
    except (Outage, Blocked) as e:
        raise TrackingError(f"MLflow at {redact(uri)} does not take {folder}: {e}") from e
    return turn == "done"


def deliver_or_warn(folder: Path | str, uri: str) -> bool:
    """Send as `deliver`; where MLflow does not take it, say so and leave it to `sync`."""
    try:
        return deliver(folder, uri, wait_s=30)
    except TrackingError as e:
        _logger.warning("%s. `lzsweep sync` delivers the rest.", e)
        return False


@dataclasses.dataclass(frozen=True)
class SyncSummary:
    """What `sync` found: folders delivered now, delivered before, and left, with the reason."""

    delivered: tuple[Path, ...]
    unchanged: tuple[Path, ...]
    left: dict[Path, str]


def sync(roots: Iterable[Path | str], uri: str) -> SyncSummary:
    """Deliver every journal below some folders.

    A server that answers nothing ends the attempt at once, and the rest is left. Where it is one
    run that fails, such as a file that a proxy does not let through, the others are delivered.
    """
    found = {p.parent for root in roots for p in Path(root).rglob(JOURNAL_NAME)}
    unchanged = {f for f in found if is_delivered(f)}
    delivered: list[Path] = []
    left: dict[Path, str] = {}
    outage = ""
    for folder in sorted(found - unchanged):
        if outage:
            left[folder] = outage
            continue
        try:
            while (turn := take_turn(folder, uri)) == "more":
                pass
            if turn == "done":
                delivered.append(folder)
            else:
                left[folder] = "it is being sent just now"
        except Blocked as e:
            left[folder] = str(e)
        except Outage as e:
            left[folder] = str(e)
            outage = "" if _answers(uri) else str(e)
    return SyncSummary(tuple(delivered), tuple(sorted(unchanged)), left)


class Sender:
    """Follows the journals of some folders and delivers what they gain, from one daemon thread."""

    def __init__(self, uri: str, *, interval_s: float = 1.0) -> None:
        """Check the URI's form; nothing is imported or sent before the first `add`.

        Args:
            uri: The tracking server.
            interval_s: Seconds between two looks at a journal.

        Raises:
            TrackingError: The URI is none that we serve.
        """
        self._uri = resolve_uri(uri)
        self._interval_s = interval_s
        self._change = threading.Condition()
        self._folders: dict[Path, _Followed] = {}
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None
        self._backoff_s = 0.0

    def add(self, folder: Path | str) -> None:
        """Follow one folder's journal; to add a folder twice does no harm."""
        with self._change:
            self._folders.setdefault(Path(folder).absolute(), _Followed())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
                self._thread.start()

    def close(self, timeout_s: float = 30.0) -> list[Path]:
        """Send what there is, for a limited time, and stop.

        Returns:
            The folders that are not fully delivered: work for `sync`.
        """
        with self._change:
            self._deadline = time.monotonic() + timeout_s
            self._change.notify_all()
            thread, folders = self._thread, list(self._folders)
        if thread is not None:
            thread.join(timeout_s)
        return [f for f in folders if not is_delivered(f)]

    def _run(self) -> None:
        with self._change:
            if self._deadline is None:  # the first delivery imports MLflow, in the way of a start
                self._change.wait(self._interval_s)
        while not self._is_late():
            with self._change:
                folders = list(self._folders.items())
                closing = self._deadline is not None
            left = self._round(folders, closing)
            with self._change:
                if self._deadline is None:
                    self._change.wait(max(self._interval_s, self._backoff_s))
                elif closing and not left:
                    return
                elif left:
                    self._change.wait(min(0.2 + self._backoff_s, 1.0))

    def _is_late(self) -> bool:
        """Whether the time of `close` is over, and the rest is `sync`'s."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _round(self, folders: list[tuple[Path, _Followed]], closing: bool) -> bool:
        """Give each folder its turn. Returns whether something may be left."""
        left = False
        for folder, state in folders:
            if self._is_late():
                return True
            try:
                while self._tend(folder, state, closing) == "more":
                    if len(folders) > 1 or self._is_late():
                        left = True
                        break
            except Outage as e:
                if not _answers(self._uri):
                    self._note_outage(e)
                    return True
                self._note_blocked(folder, state, e)  # one run alone; the others go on
            left = left or state.left
        if self._backoff_s:
            _logger.warning("MLflow at %s answers again", redact(self._uri))
            self._backoff_s = 0.0
        return left

    def _tend(self, folder: Path, state: _Followed, closing: bool) -> str:
        size = _size(folder)
        if size == state.size and not state.left and not closing:
            return "done"
        if time.monotonic() < state.retry_at and not closing:
            return "blocked"
        state.left = True
        try:
            turn = take_turn(folder, self._uri)
        except Outage:
            raise
        except Exception as e:
            self._note_blocked(folder, state, e)
            state.left = not closing
            return "blocked"
        state.left = turn != "done"
        state.size = size
        return turn

    def _note_outage(self, error: Outage) -> None:
        if not self._backoff_s:
            _logger.warning(
                "MLflow at %s does not take our records (%s). Training goes on; they wait on disk "
                "and are sent when it answers.",
                redact(self._uri),
                error,
            )
        doubled = max(_FIRST_BACKOFF_S, 2 * self._backoff_s)
        self._backoff_s = min(_MAX_BACKOFF_S, doubled) * random.uniform(0.8, 1.0)

    def _note_blocked(self, folder: Path, state: _Followed, error: Exception) -> None:
        if not state.retry_at:
            _logger.warning("MLflow does not take the run of %s: %s", folder, reason(error))
        state.retry_at = time.monotonic() + _BLOCKED_S


@dataclasses.dataclass
class _Followed:
    size: int = -1  # Of the journal when it was last looked at.
    left: bool = True
    retry_at: float = 0.0  # Monotonic seconds.


def _answers(uri: str) -> bool:
    """Whether the server answers at all, so that what fails is one run's."""
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception:  # whatever stands in the way
        return False
    return True


def _size(folder: Path) -> int:
    try:
        return (folder / JOURNAL_NAME).stat().st_size
    except OSError:
        return 0

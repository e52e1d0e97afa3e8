"""The journal of one run: what is to be logged, on disk before anybody talks to a server.

`FOLDER/journal.jsonl` holds one JSON object a line, appended by a single write each, so several
processes may write side by side (a trial its metrics, its worker the system metrics):

    {"type": "start", "time": ms, "run": {"key", "shared", "experiment", "name", "params",
                                          "tags", "parent_run_id",
                                          "parent_folder": relative to FOLDER}}
    {"type": "metrics", "time": ms, "step": int, "values": {name: float | "nan" | "inf" | "-inf"}}
    {"type": "tags", "tags": {}}
    {"type": "artifact", "path": absolute or relative to FOLDER, "artifact_path": ""}
    {"type": "end", "time": ms, "status": "FINISHED" | "FAILED" | "KILLED"}
    {"type": "resume", "time": ms, "run": {as in start}}      a later attempt of the same run

A line without its newline was cut off by a crash: readers stop before it, the next writer ends it
and readers then skip it. Passwords in params and tags are struck out before they get here. All of
it is sent to MLflow by `delivery`, from the file, at its own pace.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from lzsweep.tracking.client import redact

JOURNAL_NAME = "journal.jsonl"
KEY_TAG = "lzsweep.key"
"""The tag that marks the run which belongs to a journal, so that it is never made twice."""

Record = dict[str, Any]
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Journal:
    """Appends to the journal in one folder. Safe in several threads and processes.

    A metric is written only if its step lies above every step that this journal holds for its
    name: a resumed attempt that repeats some steps logs none of them twice.
    """

    def __init__(self, folder: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = Path(folder)
        self.path = self.folder / JOURNAL_NAME
        self._clock = clock
        self._lock = threading.RLock()
        self._summary: _Summary | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o644)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
        if self._torn:
            # At once, so that what this journal knows of its past is what everybody reads.
            with suppress(OSError):
                os.write(self._fd, b"\n")
                self._torn = False

    def start(
        self,
        *,
        experiment: str,
        name: str,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        parent_folder: Path | None = None,
        key: str | None = None,
    ) -> None:
        """Begin the run, or take it up again where the journal already holds one.

        Args:
            experiment: MLflow experiment; made at delivery where it does not exist.
            name: Name of the run in MLflow.
            params: Logged once. A value that differs from an earlier attempt's becomes the tag
                `lzsweep.param_drift.<name>`, for MLflow never changes a param.
            tags: Added to the user and the program, which are noted here.
            parent_run_id: The MLflow run under which this one is shown.
            parent_folder: The folder of that run's journal, where nobody may know its id yet.
            key: What identifies the run on the server where the folder does not; two journals
                of one key write into one run. By default this journal has a run of its own.
        """
        summary = self._scanned()
        kind = "resume" if summary.key else "start"
        own = key and hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        summary.key = summary.key or own or uuid.uuid4().hex
        run = {
            "key": summary.key,
            "shared": key is not None,
            "experiment": experiment,
            "name": redact(name),
            "params": _texts(params or {}),
            "tags": _origin_tags() | _texts(tags or {}),
            "parent_run_id": parent_run_id,
            "parent_folder": parent_folder and os.path.relpath(parent_folder, self.folder),
        }
        self._append({"type": kind, "time": self._now_ms(), "run": run})
        summary.status = "RUNNING"

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note metric values at a step; names whose step is not a new highest are left out.

        Raises:
            OSError: The journal cannot be written, e.g. the disk is full.
        """
        with self._lock:
            last = self._scanned().last_step
            fresh = {k: _plain(v) for k, v in values.items() if step > last.get(k, step - 1)}
            if not fresh:
                return
            self._append(
                {"type": "metrics", "time": self._now_ms(), "step": step, "values": fresh}
            )
            for k in fresh:
                last[k] = step

    def tags(self, tags: Mapping[str, str]) -> None:
        """Note tags; the last value of a tag stays."""
        self._append({"type": "tags", "tags": _texts(tags)})

    def artifact(self, path: Path | str, artifact_path: str = "") -> None:
        """Note a file or folder to upload; it must stay as it is until it was delivered.

        Args:
            path: Absolute, or relative to the journal's folder.
            artifact_path: Folder within the run's artifacts.
        """
        self._append({"type": "artifact", "path": str(path), "artifact_path": artifact_path})

    def end(self, status: Status) -> None:
        """Note how and when the run ended."""
        self._append({"type": "end", "time": self._now_ms(), "status": status})
        if self._summary:
            self._summary.status = status

    @property
    def status(self) -> str | None:
        """RUNNING, or how the last attempt ended; None before any start."""
        return self._scanned().status

    @property
    def began_ms(self) -> int:
        """When the first attempt began, in ms since the epoch; now where none has begun."""
        return self._scanned().began_ms or self._now_ms()

    def close(self) -> None:
        """Let go of the file. The run itself goes on until `end`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _scanned(self) -> _Summary:
        if self._summary is None:
            self._summary = _summarise(self.path)
        return self._summary

    def _append(self, record: Record) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._torn:
                line = b"\n" + line
            self._torn = True  # Until all of it is written: a full disk may take a part only.
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError as e:  # it does not say which file
                raise OSError(e.errno, e.strerror, str(self.path)) from e
            self._torn = False


class _Summary:
    """What a reopened journal must know of its past; its size does not grow with the journal."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.status: str | None = None
        self.began_ms: int | None = None
        self.last_step: dict[str, int] = {}


def _summarise(path: Path) -> _Summary:
    summary = _Summary()
    for record, _ in read_records(path):
        match record:
            case {"type": "metrics", "step": int(step), "values": dict(values)}:
                for name in values:
                    if step > summary.last_step.get(name, step - 1):
                        summary.last_step[name] = step
            case {"type": "start" | "resume", "time": int(ms), "run": {"key": str(key)}}:
                summary.key = summary.key or key
                summary.began_ms = summary.began_ms or ms
                summary.status = "RUNNING"
            case {"type": "end", "status": str(status)}:
                summary.status = status
    return summary


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Yield each whole record from a byte offset on, with the offset behind it.

    A line that is no JSON object (the remains of a crash) comes as an empty record. Memory is
    bounded by the longest line. A file that is not there holds no records.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = {}
            yield record if isinstance(record, dict) else {}, offset


def _plain(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: redact(str(value)) for name, value in values.items()}


def _origin_tags() -> dict[str, str]:
    # The tags that MLflow's own start_run sets. They are taken here, because the sender may be
    # another program, started by somebody else.
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    program = sys.argv[0] if sys.argv and sys.argv[0] else "lzsweep"
    return {"mlflow.user": user, "mlflow.source.name": program, "mlflow.source.type": "LOCAL"}

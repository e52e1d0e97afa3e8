"""The outbox of one run: its journal, and how much of it MLflow has.

Each record takes effect once, however often it is tried. The state is `delivered.json`:
{"run_id", "offset", "creating", "doubtful"}, replaced whole after each batch, read and written
under `delivery.lock`. Whatever dies between a call and the note of it is repeated, and that
changes nothing: MLflow stores the same metric, step, time and value once; params and tags are set
to the same values; before a run could be made a second time it is searched by the journal's key.
What the server refuses for good goes to `undeliverable.jsonl` with the reason, and the rest goes
on. Nothing is held in memory beyond one batch, so an outage costs only disk.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from filelock import FileLock, Timeout

from lzsweep.tracking.client import (
    Gone,
    Refused,
    ServerError,
    classify,
    connect,
    experiment_id,
    reason,
    sqlite_file,
)
from lzsweep.tracking.identity import alone, create_run, drop_doubles, find_run, settle
from lzsweep.tracking.journal import JOURNAL_NAME, KEY_TAG, Record, read_records
from lzsweep.tracking.names import fit_name, fit_param, fit_tag, fit_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

STATE_NAME = "delivered.json"
UNDELIVERABLE_NAME = "undeliverable.jsonl"
DRIFT_TAG = "lzsweep.param_drift."

_MAX_METRICS = 1000  # MLflow's limits for one call.
_MAX_PAIRS = 100
_METRICS_PER_TURN = 20_000
_PATIENCE_S = (0.2, 0.8)

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Blocked(Exception):
    """This folder cannot be delivered as things are; its journal keeps everything."""


@dataclasses.dataclass
class _State:
    run_id: str | None = None
    offset: int = 0
    creating: bool = False  # A run may have been made whose id did not get here.
    doubtful: bool = False  # Such a run may come up still, beside the one that we have.


Turn = Literal["done", "more", "busy"]


def run_id_of(folder: Path | str) -> str | None:
    """Id of the MLflow run that a folder's journal was delivered to, None before delivery."""
    return _read_state(Path(folder)).run_id


def is_delivered(folder: Path | str) -> bool:
    """Whether every whole record of a folder's journal was delivered."""
    folder = Path(folder)
    offset = _read_state(folder).offset
    return next(read_records(folder / JOURNAL_NAME, offset), None) is None


def take_turn(folder: Path, uri: str, *, wait_s: float = 0) -> Turn:
    """Send a share of what one folder's journal holds and the server has not.

    Args:
        folder: Where the journal is.
        uri: The tracking server.
        wait_s: How long to wait for another process that is sending the same journal.

    Returns:
        "done": nothing is left; "more": to be called again; "busy": another process sends it.

    Raises:
        Outage: The server does not answer; what was sent is noted.
        Blocked: The server answers, but this run cannot be written.
    """
    try:
        if is_delivered(folder):
            return "done"
        with FileLock(folder / "delivery.lock", timeout=wait_s):
            return _Outbox(folder, uri).turn()
    except Timeout:
        return "busy"
    except OSError as e:
        raise Blocked(reason(e)) from e
    except Refused as e:
        raise Blocked(str(e)) from e


class _Outbox:
    """One turn at one folder, with its lock held."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder = folder
        self._uri = uri
        self._path = folder / JOURNAL_NAME
        self._state = _read_state(folder)
        self._fresh = False  # The run was made in this turn.
        self._told = False

    def turn(self) -> Turn:
        client = connect(self._uri)
        try:
            try:
                return self._send_records(client)
            except Gone:
                # Another server, or one that lost its data: all goes to it, from the beginning.
                _logger.warning(
                    "MLflow does not know the run of %s: sending all of it", self._folder
                )
                self._state = _State(creating=True)
                self._save()
            return self._send_records(client)
        except Refused as e:
            self._check_active(client, e)
            raise

    def _send_records(self, client: MlflowClient) -> Turn:
        if self._state.run_id is None and (turn := self._open_run(client)):
            return turn
        batch: list[Metric] = []
        n_sent, end = 0, self._state.offset
        for record, offset in read_records(self._path, self._state.offset):
            is_metrics = record.get("type") == "metrics"
            if batch and (not is_metrics or len(batch) >= _MAX_METRICS):
                self._send_metrics(client, batch)
                self._save(offset=end)
                n_sent += len(batch)
                batch = []
                if n_sent >= _METRICS_PER_TURN:
                    return "more"
            try:
                if is_metrics:
                    batch += _metrics_of(record)
                else:
                    self._handle(client, record)
                    self._save(offset=offset)
            except (KeyError, TypeError, ValueError) as e:
                self._give_up(record, f"it has no form of ours: {e!r}")
            end = offset
        if batch:
            self._send_metrics(client, batch)
        self._save(offset=end)
        return "done"

    def _open_run(self, client: MlflowClient) -> Turn | None:
        """Find or make the run; None when it is there, else how this turn ends."""
        start = next((r for r, _ in read_records(self._path) if r.get("type") == "start"), None)
        if start is None:
            return "done"
        run, state = start["run"], self._state
        if above := run.get("parent_folder"):
            # Its id is known once its own journal was begun to be delivered.
            parent = self._folder / above
            if run_id_of(parent) is None and take_turn(parent, self._uri) == "busy":
                return "busy"
            start = {**start, "run": {**run, "parent_run_id": run_id_of(parent)}}
        try:
            experiment = experiment_id(client, self._uri, fit_text(run["experiment"]))
            with alone(self._uri) if run["shared"] else nullcontext():
                if state.creating or run["shared"]:
                    state.run_id = find_run(client, experiment, run["key"])
                if state.run_id is None:
                    state.doubtful, state.creating = state.creating, True
                    self._save(durable=True)
                    state.run_id = create_run(client, experiment, start)
                    self._fresh = True
            if self._fresh and run["shared"] and sqlite_file(self._uri) is None:
                state.run_id = settle(client, experiment, run["key"], state.run_id)
        except Refused as e:
            raise Blocked(str(e)) from e
        self._save(durable=True)
        return None

    def _end_run(self, client: MlflowClient, status: str, ms: int) -> None:
        if self._state.doubtful:
            run = self._call(client.get_run, self._run_id)
            drop_doubles(client, run.info.experiment_id, run.data.tags[KEY_TAG], self._run_id)
            self._state.doubtful = False
        self._call(client.set_terminated, self._run_id, status, ms)

    def _handle(self, client: MlflowClient, record: Record) -> None:
        match record:
            case {"type": "start" | "resume" as kind, "run": dict(run)}:
                if kind == "resume" or not self._fresh:
                    self._call(client.update_run, self._run_id, status="RUNNING")
                self._send_tags(client, run["tags"])
                self._send_params(client, run["params"])
                self._fresh = False
            case {"type": "tags", "tags": dict(tags)}:
                self._send_tags(client, tags)
            case {"type": "artifact", "path": str(path)}:
                self._send_artifact(client, record, self._folder / path)
            case {"type": "end", "status": str(status), "time": int(ms)}:
                self._end_run(client, status, ms)
            case {"type": str()}:
                self._give_up(record, "this version of lzsweep does not know such a record")

    @property
    def _run_id(self) -> str:
        assert self._state.run_id is not None
        return self._state.run_id

    def _send_metrics(self, client: MlflowClient, metrics: Sequence[Metric]) -> None:
        def send(part: Sequence[Metric]) -> None:
            client.log_batch(self._run_id, metrics=part)

        for part in _chunks(metrics, _MAX_METRICS):
            self._offer(client, send, part, dict)

    def _send_tags(self, client: MlflowClient, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        def send(part: Sequence[RunTag]) -> None:
            client.log_batch(self._run_id, tags=part)

        items = [RunTag(fit_name(k), fit_tag(v)) for k, v in tags.items()]
        for part in _chunks(items, _MAX_PAIRS):
            self._offer(client, send, part, dict)

    def _send_params(self, client: MlflowClient, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        def send(part: Sequence[Param]) -> None:
            client.log_batch(self._run_id, params=part)

        items = [Param(fit_name(k), fit_param(v)) for k, v in params.items()]
        if items and not self._fresh:
            known = self._call(client.get_run, self._run_id).data.params
            drift = {p.key: p.value for p in items if known.get(p.key, p.value) != p.value}
            self._send_tags(client, {f"{DRIFT_TAG}{k}": v for k, v in drift.items()})
            items = [p for p in items if p.key not in known]
        for part in _chunks(items, _MAX_PAIRS):
            self._offer(client, send, part, dict)

    def _send_artifact(self, client: MlflowClient, record: Record, path: Path) -> None:
        if not path.exists():
            self._give_up(record, f"{path} is not there")
            return
        inside = fit_text(record.get("artifact_path", ""))
        files = [(path, inside)]
        if path.is_dir():
            files = [
                (f, posixpath.join(inside, path.name, *f.relative_to(path).parts[:-1]))
                for f in sorted(path.rglob("*"))
                if f.is_file()
            ]

        def send(part: Sequence[tuple[Path, str]]) -> None:
            for file, to in part:
                with _patience(file.stat().st_size):
                    client.log_artifact(self._run_id, str(file), to or None)

        for one in files:
            self._offer(client, send, [one], lambda f: {**record, "path": str(f[0])})

    def _offer(
        self,
        client: MlflowClient,
        send: Callable[[Sequence[_T]], None],
        items: Sequence[_T],
        describe: Callable[[_T], Record],
        *,
        patient: bool = True,
    ) -> None:
        """Send items; where they are refused, halve them until the refused ones stand alone."""
        try:
            self._persist(client, send, items, _PATIENCE_S if patient else ())
        except Gone:
            raise
        except Refused as e:
            self._check_active(client, e)
            if len(items) == 1:
                self._give_up(describe(items[0]), str(e))
                return
            half = len(items) // 2
            for part in (items[:half], items[half:]):
                # One thing alone is not given up lightly.
                self._offer(client, send, part, describe, patient=len(part) == 1)

    def _check_active(self, client: MlflowClient, refused: Refused) -> None:
        if self._call(client.get_run, self._run_id).info.lifecycle_stage != "active":
            raise Blocked(
                "the run was deleted in MLflow; restore it to deliver the rest"
            ) from refused

    def _persist(
        self,
        client: MlflowClient,
        send: Callable[[Sequence[_T]], None],
        items: Sequence[_T],
        waits_s: Sequence[float],
    ) -> None:
        """Send; a server that fails at this again and again, and takes other things, refuses."""
        for wait_s in (*waits_s, None):
            try:
                self._call(send, items)
                return
            except ServerError as e:
                self._call(client.set_tag, self._run_id, "lzsweep.resent", str(wait_s))
                if wait_s is None:
                    raise Refused(str(e)) from e
                time.sleep(wait_s)

    @staticmethod
    def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as e:
            raise classify(e) from e

    def _give_up(self, record: Record, why: str) -> None:
        entry = {"time": int(time.time() * 1000), "reason": why, "record": record}
        with (self._folder / UNDELIVERABLE_NAME).open("a") as file:
            file.write(json.dumps(entry, default=str) + "\n")
        if not self._told:
            self._told = True
            _logger.warning(
                "MLflow refuses something of %s (%s); it is kept in %s",
                self._folder,
                why,
                UNDELIVERABLE_NAME,
            )

    def _save(self, *, offset: int | None = None, durable: bool = False) -> None:
        if offset is not None:
            self._state.offset = offset
        target = self._folder / STATE_NAME
        aside = target.with_suffix(".tmp")
        with aside.open("w") as file:
            json.dump(dataclasses.asdict(self._state), file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(target)


def _read_state(folder: Path) -> _State:
    try:
        state = _State(**json.loads((folder / STATE_NAME).read_text()))
    except FileNotFoundError:
        return _State()
    except (ValueError, TypeError):
        return _State(creating=True)
    journal = folder / JOURNAL_NAME
    # A journal shorter than what was sent of it is another one.
    return state if journal.exists() and journal.stat().st_size >= state.offset else _State()


def _metrics_of(record: Record) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for name, value in record["values"].items():
        yield Metric(fit_name(name), float(value), record["time"], record["step"])


def _chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


@contextmanager
def _patience(n_bytes: int) -> Iterator[None]:
    """Let the server take its time with a large file."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name, "30")
    os.environ[name] = str(max(int(before), 60 + n_bytes // 5_000_000))
    try:
        yield
    finally:
        os.environ[name] = before

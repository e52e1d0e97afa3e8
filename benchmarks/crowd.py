"""Many at once: clients that log to one server as fast as it answers, and a database full of runs.

A client is a process with MLflow's own client, which repeats no call, so that no error is hidden.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psycopg
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from psycopg import sql

from lzsweep.tracking.client import connect, reason

BATCH = 10
"""Metrics in one call."""
COPIED = ("runs", "params", "tags", "metrics", "latest_metrics")
"""Tables that hold a run."""

READY_S = 300.0
"""Time until all clients have begun their runs."""

_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Logged:
    """What one client logged.

    Attributes:
        run_id: of its run.
        n_calls: calls that were made.
        n_metrics: values in the calls that the server said it has.
        errors: one text for each other call.
    """

    run_id: str
    n_calls: int
    n_metrics: int
    errors: tuple[str, ...]


def log_at_once(uri: str, experiment_id: str, n_clients: int, seconds: float) -> list[Logged]:
    """Let so many processes log for so long; name and password come from the environment."""
    connect(uri)  # imports, once for all
    together = _FORK.Barrier(n_clients, timeout=READY_S)
    clients, mouths = [], []
    for _ in range(n_clients):
        mouth, end = _FORK.Pipe(duplex=False)
        client = _FORK.Process(target=_log, args=(uri, experiment_id, seconds, together, end))
        client.start()
        end.close()  # before the next client, so that only its own holds it and ends it
        clients.append(client)
        mouths.append(mouth)
    found: list[Logged] = []
    for mouth, client in zip(mouths, clients, strict=True):
        try:
            found.append(mouth.recv())
        except EOFError:
            raise SystemExit("a client ended before it had told what it logged") from None
        client.join()
    return found


def _log(uri: str, experiment_id: str, seconds: float, together: Any, end: Connection) -> None:
    try:
        client = connect(uri)
        run_id = str(client.create_run(experiment_id).info.run_id)
    except BaseException:
        together.abort()  # nobody need wait for this one
        raise
    together.wait()
    errors: list[str] = []
    n_calls = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = int(time.time() * 1000)
        batch = [Metric(f"m{n}", n_calls + n / BATCH, now, n_calls) for n in range(BATCH)]
        n_calls += 1
        try:
            client.log_batch(run_id, metrics=batch)
        except Exception as error:  # whatever a client would see
            errors.append(reason(error))
    end.send(Logged(run_id, n_calls, BATCH * (n_calls - len(errors)), tuple(errors)))
    end.close()
    os._exit(0)


def count_metrics(database: psycopg.Connection, run_ids: Sequence[str]) -> int:
    """Values of these runs in MLflow's database."""
    query = "SELECT count(*) FROM metrics WHERE run_uuid = ANY(%s)"
    row = database.execute(query, (list(run_ids),)).fetchone()
    assert row is not None
    return int(row[0])


def make_runs(
    client: MlflowClient,
    database: psycopg.Connection,
    experiment_id: str,
    *,
    n_runs: int,
    n_params: int,
) -> None:
    """Fill an experiment: one run by MLflow, then copies of its rows, which takes no time.

    The runs are named `run-1` to `run-N`; `p0` of run n is `0.n`; the later number began later.
    """
    run = client.create_run(experiment_id, run_name="run").info
    client.log_batch(
        run.run_id,
        metrics=[Metric("val/loss", 1.0, run.start_time, step) for step in range(3)],
        params=[Param(f"p{n}", str(n)) for n in range(n_params)],
        tags=[RunTag("lzsweep.trial", "0")],
    )
    for table in COPIED:
        _copy(database, table, run.run_id, n_runs)
    client.delete_run(run.run_id)


def _copy(database: psycopg.Connection, table: str, run_id: str, n: int) -> None:
    changed = {
        "run_uuid": "md5(run_uuid || number)",
        "start_time": "start_time + number",
        **({"name": "name || '-' || number"} if table == "runs" else {}),
        **({"value": "value || '.' || number"} if table == "params" else {}),
    }
    query = "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
    names = [str(name) for (name,) in database.execute(query, (table,))]
    values = [sql.SQL(changed[x]) if x in changed else sql.Identifier(x) for x in names]
    database.execute(
        sql.SQL(
            "INSERT INTO {table} ({names}) SELECT {values} FROM {table}"
            " CROSS JOIN generate_series(1, {n}) AS number WHERE run_uuid = {run}"
        ).format(
            table=sql.Identifier(table),
            names=sql.SQL(", ").join(map(sql.Identifier, names)),
            values=sql.SQL(", ").join(values),
            n=n,
            run=run_id,
        )
    )

"""The server: how soon it answers, how many clients it bears, how fast it searches.

python -m benchmarks.serving            # prints the table, writes build/bench/server.json
python -m benchmarks.serving --keep     # and puts it into benchmarks/README.md
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from benchmarks.crowd import count_metrics, log_at_once, make_runs
from benchmarks.shared import free_port, shared_server
from benchmarks.table import Row, choose, publish
from lzsweep.tracking.client import connect

PATIENCE_S = 600.0
ROUNDS = 2
N_CLIENTS, CLIENTS_S = 32, 60.0
N_RUNS, N_PARAMS, N_SEARCHES, SEARCH_GOAL_S = 1000, 20, 7, 2.0


def main() -> None:
    chosen = choose(__doc__, GROUPS, has_quick=False)
    publish("server", chosen, lambda group: GROUPS[group]())


def ready() -> Iterator[Row]:
    """From the command to the first answer that needs the database, ours and theirs in turn."""
    with tempfile.TemporaryDirectory(prefix="lzsweep-bench-") as scratch:
        folder = Path(scratch)
        connect(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()  # made, and migrated
        found = [(_ours(folder), _theirs(folder)) for _ in range(ROUNDS)]
    ours, peer = (min(column) for column in zip(*found, strict=True))
    yield Row("server_ready", "`mlflow server`, its defaults", ours, peer, "s", "<= 0.333")


def _ours(folder: Path) -> float:
    port = free_port()
    command = [sys.executable, "-m", "lzsweep", "serve", "--port", str(port)]
    return _seconds_until_ready(command, folder, port)


def _theirs(folder: Path) -> float:
    port = free_port()
    program = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow"
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = [program, "server", "--backend-store-uri", store, "--port", str(port)]
    return _seconds_until_ready(command, folder, port)


def _seconds_until_ready(command: Sequence[str], folder: Path, port: int) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not _answers(port):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                raise SystemExit(f"{' '.join(command)} did not answer")
            time.sleep(0.1)
        return time.perf_counter() - began
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search"
    try:
        return requests.post(url, json={"max_results": 1}, timeout=30).ok
    except requests.exceptions.RequestException:
        return False


def shared() -> Iterator[Row]:
    """A shared server with its own PostgreSQL and passwords: a crowd of clients, a full page."""
    with shared_server() as server:
        os.environ.update(server.environment)
        client = connect(server.uri)
        crowd = client.create_experiment("crowd")
        logged = log_at_once(server.uri, crowd, N_CLIENTS, CLIENTS_S)
        n_calls = sum(one.n_calls for one in logged)
        n_errors = sum(len(one.errors) for one in logged)
        for text in {text for one in logged for text in one.errors}:
            print(f"  {text}")
        print(f"  {n_calls / CLIENTS_S:.1f} calls a second", flush=True)
        who = f"{N_CLIENTS} clients for {CLIENTS_S:.0f} s, no retries"
        yield Row(
            "clients_answered", f"calls of {who}", n_calls - n_errors, n_calls, "calls", ">= 1"
        )
        with server.connect() as database:
            n_kept = count_metrics(database, [one.run_id for one in logged])
        n_sent = sum(one.n_metrics for one in logged)
        yield Row("clients_kept", "metrics in those answered", n_kept, n_sent, "metrics", ">= 1")

        full = client.create_experiment("full")
        with server.connect() as database:
            make_runs(client, database, full, n_runs=N_RUNS, n_params=N_PARAMS)
        against = f"the goal; all {N_RUNS:,} runs x {N_PARAMS} params at once, PostgreSQL"
        seconds = [_search(server.uri, full, server.secrets["admin"]) for _ in range(N_SEARCHES)]
        ours = statistics.median(seconds)
        yield Row("search_runs", against, ours, SEARCH_GOAL_S, "s", "<= 1")


def _search(uri: str, experiment: str, password: str) -> float:
    """What MLflow's page asks for, but all runs instead of its first hundred."""
    body: Any = {
        "experiment_ids": [experiment],
        "max_results": N_RUNS,
        "run_view_type": "ACTIVE_ONLY",
        "order_by": ["attributes.start_time DESC"],
    }
    began = time.perf_counter()
    answer = requests.post(
        f"{uri}/ajax-api/2.0/mlflow/runs/search", json=body, auth=("admin", password), timeout=60
    )
    n_runs = len(answer.json()["runs"])
    seconds = time.perf_counter() - began
    if n_runs != N_RUNS:
        raise SystemExit(f"the search found {n_runs} runs of {N_RUNS}")
    return seconds


GROUPS: dict[str, Callable[[], Iterator[Row]]] = {"ready": ready, "shared": shared}


if __name__ == "__main__":
    main()

"""How soon the server answers, beside MLflow's own command over the same database.

python -m benchmarks.serving            # prints the table, writes build/bench/server.json
python -m benchmarks.serving --keep     # and puts it into benchmarks/README.md
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from benchmarks.table import Row, as_markdown, keep, write_json
from lzsweep.tracking.client import connect

ROUNDS = 2
PATIENCE_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="put the table into the README")
    keeps = parser.parse_args().keep
    with tempfile.TemporaryDirectory(prefix="lzsweep-bench-") as scratch:
        folder = Path(scratch)
        connect(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()  # made, and migrated
        found = [(_ours(folder), _theirs(folder)) for _ in range(ROUNDS)]
    ours, peer = (min(column) for column in zip(*found, strict=True))
    rows = [Row("server_ready", "`mlflow server`, its defaults", ours, peer, "s", "<= 0.333")]
    print(as_markdown(rows))
    write_json(rows, Path("build/bench/server.json"))
    if keeps:
        keep("server", rows, len(os.sched_getaffinity(0)))


def _ours(folder: Path) -> float:
    port = _free_port()
    command = [sys.executable, "-m", "lzsweep", "serve", "--port", str(port)]
    return _seconds_until_ready(command, folder, port)


def _theirs(folder: Path) -> float:
    port = _free_port()
    program = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow"
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = [program, "server", "--backend-store-uri", store, "--port", str(port)]
    return _seconds_until_ready(command, folder, port)


def _seconds_until_ready(command: Sequence[str], folder: Path, port: int) -> float:
    """From the command to the first answer that needs the database."""
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


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


if __name__ == "__main__":
    main()

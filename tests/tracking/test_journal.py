from __future__ import annotations

import json
import math
import multiprocessing
import resource
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from lzsweep.tracking.journal import JOURNAL_NAME, Journal, read_records

_FORK = multiprocessing.get_context("fork")


def _records(folder: Path) -> list[dict[str, object]]:
    return [record for record, _ in read_records(folder / JOURNAL_NAME)]


def _steps(folder: Path, name: str) -> list[object]:
    found = [r for r in _records(folder) if r.get("type") == "metrics"]
    return [r["step"] for r in found if name in r["values"]]  # type: ignore[operator]


def test_every_line_is_strict_json_and_says_what_was_written(tmp_path: Path) -> None:
    with Journal(tmp_path, clock=lambda: 12.5) as journal:
        journal.start(experiment="e", name="n", params={"lr": 0.1}, tags={"t": "x"})
        journal.metrics(3, {"a": 1, "b": math.nan, "c": math.inf, "d": -math.inf})
        journal.tags({"p": "x"})
        journal.artifact(Path("best.ckpt"), "checkpoints")
        journal.end("FINISHED")
    start, metrics, tags, artifact, end = _records(tmp_path)
    run = start["run"]
    assert isinstance(run, dict)
    assert run["params"] == {"lr": "0.1"}
    assert run["tags"]["t"] == "x" and run["tags"]["mlflow.source.type"] == "LOCAL"
    assert metrics == {
        "type": "metrics",
        "time": 12500,
        "step": 3,
        "values": {"a": 1.0, "b": "nan", "c": "inf", "d": "-inf"},
    }
    assert tags == {"type": "tags", "tags": {"p": "x"}}
    assert artifact == {
        "type": "artifact",
        "path": "best.ckpt",
        "artifact_path": "checkpoints",
    }
    assert end == {"type": "end", "time": 12500, "status": "FINISHED"}
    for line in (tmp_path / JOURNAL_NAME).read_text().splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


def test_resumed_attempt_logs_no_step_twice(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.start(experiment="e", name="n")
        for step in range(0, 50, 10):
            journal.metrics(step, {"train/loss": 1.0, "lr": 0.1})
        journal.metrics(40, {"val/loss": 2.0, "train/loss": 9.0})
    with Journal(tmp_path) as journal:
        for step in range(20, 80, 10):
            journal.metrics(step, {"train/loss": 1.0, "new": 3.0})
    assert _steps(tmp_path, "train/loss") == [0, 10, 20, 30, 40, 50, 60, 70]
    assert _steps(tmp_path, "val/loss") == [40]
    assert _steps(tmp_path, "new") == [20, 30, 40, 50, 60, 70]


def test_passwords_do_not_get_into_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        uri = "postgresql://me:s3cret@host/db"
        journal.start(experiment="e", name="n", params={"uri": uri}, tags={"uri": uri})
        journal.tags({"later": uri})
    text = journal.path.read_text()
    assert "s3cret" not in text and text.count("postgresql://***@host/db") == 3


def test_second_start_takes_the_same_run_up_again(tmp_path: Path) -> None:
    with Journal(tmp_path, clock=lambda: 1.0) as journal:
        assert journal.status is None
        journal.start(experiment="e", name="n")
        journal.end("KILLED")
        assert journal.status == "KILLED"
    with Journal(tmp_path, clock=lambda: 2.0) as journal:
        assert journal.status == "KILLED"
        journal.start(experiment="e", name="n")
        assert journal.status == "RUNNING"
        assert journal.began_ms == 1000
    first, _, second = _records(tmp_path)
    assert (first["type"], second["type"]) == ("start", "resume")
    assert first["run"]["key"] == second["run"]["key"]  # type: ignore[index]


def test_line_cut_off_at_any_byte_costs_that_record_only(tmp_path: Path) -> None:
    with Journal(tmp_path / "whole") as journal:
        journal.start(experiment="e", name="n")
        journal.metrics(1, {"a": 1.0})
    whole = (tmp_path / "whole" / JOURNAL_NAME).read_bytes()
    first_line = whole.index(b"\n") + 1
    for cut in range(first_line + 1, len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / JOURNAL_NAME).write_bytes(whole[:cut])
        assert [r["type"] for r in _records(folder)] == ["start"]
        with Journal(folder) as journal:
            journal.metrics(1, {"a": 1.0})
            journal.metrics(2, {"a": 2.0})
        # With only the newline missing the record is whole, and is not written again.
        assert _steps(folder, "a") == [1, 2]


def test_full_disk_is_told_and_leaves_no_torn_line_behind(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start(experiment="e", name="n")
    size = (tmp_path / JOURNAL_NAME).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
    try:
        journal.metrics(1, {"a": 1.0})
        with pytest.raises(OSError, match="too large"):
            journal.metrics(2, {"a": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.metrics(2, {"a": 2.5})
    journal.close()
    assert _steps(tmp_path, "a") == [1, 2]


def _append_many(folder: Path, name: str) -> None:
    with Journal(folder) as journal:
        for step in range(500):
            journal.metrics(step, {name: step, f"{name}/other": 0.5})


def test_processes_append_side_by_side(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(4)]
    processes = [_FORK.Process(target=_append_many, args=(tmp_path, n)) for n in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for name in names:
        assert _steps(tmp_path, name) == list(range(500))


def test_writing_takes_microseconds_and_reading_bounded_memory(tmp_path: Path) -> None:
    values = {f"train/metric_{i}": i / 7 for i in range(6)}
    journal = Journal(tmp_path)
    journal.start(experiment="e", name="n")
    times = []
    for batch in range(10):
        began = time.perf_counter()
        for step in range(500):
            journal.metrics(500 * batch + step, values)
        times.append((time.perf_counter() - began) / 500)
    assert min(times) < 50e-6
    tracemalloc.start()
    Journal(tmp_path).metrics(4999, values)  # which looks up the last steps, and writes nothing
    assert tracemalloc.get_traced_memory()[1] < 200_000 < journal.path.stat().st_size / 4
    tracemalloc.stop()
    assert _steps(tmp_path, "train/metric_0") == list(range(5000))


def test_tracking_imports_neither_torch_nor_mlflow() -> None:
    code = """
import sys
import lzsweep.tracking.runs, lzsweep.tracking.system, lzsweep.tracking.delivery
assert not {"torch", "mlflow", "numpy", "requests"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)

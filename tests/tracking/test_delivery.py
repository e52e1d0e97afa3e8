from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from filelock import FileLock

from lzsweep.errors import TrackingError
from lzsweep.tracking import outbox
from lzsweep.tracking.client import connect
from lzsweep.tracking.delivery import deliver, sync
from lzsweep.tracking.journal import JOURNAL_NAME, Journal
from lzsweep.tracking.outbox import STATE_NAME, UNDELIVERABLE_NAME, is_delivered, run_id_of
from tests.tracking.conftest import Server

_FORK = multiprocessing.get_context("fork")


def write_run(folder: Path, n_steps: int = 10, **start: Any) -> Path:
    with Journal(folder) as journal:
        journal.start(**{"experiment": "exp", "name": folder.name, **start})
        for step in range(n_steps):
            journal.metrics(step, {"train/loss": 1 / (step + 1), "lr": 0.1})
        journal.end("FINISHED")
    return folder


def the_run(uri: str, folder: Path) -> Any:
    return connect(uri).get_run(run_id_of(folder) or "")


def points(uri: str, folder: Path, name: str) -> list[tuple[int, float]]:
    history = connect(uri).get_metric_history(run_id_of(folder) or "", name)
    return sorted((m.step, m.value) for m in history)


def runs_of(uri: str, experiment: str) -> list[Any]:
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def test_everything_arrives(uri: str, tmp_path: Path) -> None:
    now = iter(range(1000, 2000))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hello")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("lr: 0.1")
    with Journal(tmp_path / "run", clock=lambda: next(now)) as journal:
        journal.start(
            experiment="everything",
            name="#012 größe 🙂",
            params={"lr": 0.1, "loss.policy": 1},
            tags={"lzsweep.trial": "12"},
            parent_run_id="0" * 32,
        )
        journal.metrics(5, {"a": 1.5, "b": math.nan, "c": math.inf})
        journal.tags({"lzsweep.ending": "complete"})
        journal.artifact("config.yaml")
        journal.artifact(tmp_path / "notes", "docs")
        journal.end("FINISHED")
    assert deliver(tmp_path / "run", uri)
    run = the_run(uri, tmp_path / "run")
    assert run.info.run_name == "#012 größe 🙂"
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1000_000, 1002_000)
    assert run.data.params == {"lr": "0.1", "loss.policy": "1"}
    tags = run.data.tags
    assert tags["lzsweep.trial"] == "12" and tags["lzsweep.ending"] == "complete"
    assert tags["mlflow.parentRunId"] == "0" * 32
    assert tags["mlflow.user"] == run.info.user_id != ""
    assert tags["mlflow.source.type"] == "LOCAL" and tags["mlflow.source.name"]
    client = connect(uri)
    (a,) = client.get_metric_history(run.info.run_id, "a")
    assert (a.step, a.value, a.timestamp) == (5, 1.5, 1001_000)
    assert math.isnan(run.data.metrics["b"]) and run.data.metrics["c"] > 1e308
    paths = [f.path for f in client.list_artifacts(run.info.run_id)]
    assert paths == ["config.yaml", "docs"]
    assert client.list_artifacts(run.info.run_id, "docs/notes")[0].path == "docs/notes/a.txt"
    experiment = client.get_experiment_by_name("everything")
    assert experiment and experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_repeating_changes_nothing(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Journal(folder) as journal:
        journal.start(experiment="repeated", name="r", params={"p": "x" * 7000})
        for step in range(300):
            journal.metrics(step, {f"m{i}": step + i for i in range(4)} | {"nan": math.nan})
        journal.end("KILLED")
    assert deliver(folder, uri)
    before = the_run(uri, folder)
    for state in ({"run_id": before.info.run_id, "offset": 0, "creating": False}, "torn"):
        (folder / STATE_NAME).write_text(json.dumps(state))
        assert not is_delivered(folder)
        assert deliver(folder, uri)
        assert is_delivered(folder)
    after = the_run(uri, folder)
    assert after.data.tags == before.data.tags
    assert after.data.params == before.data.params == {"p": "x" * 6000}
    assert (after.info.status, after.info.end_time) == ("KILLED", before.info.end_time)
    assert len(runs_of(uri, "repeated")) == 1
    for name in ("m0", "m1", "m2", "m3"):
        assert [s for s, _ in points(uri, folder, name)] == list(range(300))
    assert len(points(uri, folder, "nan")) == 300


def test_resumed_run_is_one_run(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Journal(folder) as journal:
        journal.start(experiment="resumed", name="r", params={"lr": 0.1, "n": 1})
        journal.metrics(1, {"a": 1.0})
        journal.end("KILLED")
    deliver(folder, uri)
    assert the_run(uri, folder).info.status == "KILLED"
    with Journal(folder) as journal:
        journal.start(experiment="resumed", name="r", params={"lr": 0.2, "n": 1, "new": 2})
        journal.metrics(1, {"a": 5.0})
        journal.metrics(2, {"a": 2.0})
        assert deliver(folder, uri)
        run = the_run(uri, folder)
        assert run.info.status == "RUNNING"
        assert run.data.params == {"lr": "0.1", "n": "1", "new": "2"}
        assert run.data.tags["lzsweep.param_drift.lr"] == "0.2"
        assert "lzsweep.param_drift.n" not in run.data.tags
        journal.end("FINISHED")
    deliver(folder, uri)
    assert the_run(uri, folder).info.status == "FINISHED"
    assert points(uri, folder, "a") == [(1, 1.0), (2, 2.0)]
    assert len(runs_of(uri, "resumed")) == 1


_CALLS = ("create_run", "log_batch", "set_terminated", "log_artifact", "get_run", "search_runs")


def _deliver_and_die(folder: Path, uri: str, at: int) -> None:
    """Deliver, and be killed at the n-th of the moments before and after calls and notes."""
    moments = 0

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal moments
            for then in (lambda: None, lambda: function(*args, **kwargs)):
                result = then()
                moments += 1
                if moments == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    client = connect(uri)
    for name in _CALLS:
        setattr(client, name, mortal(getattr(client, name)))
    outbox._Outbox._save = mortal(outbox._Outbox._save)  # type: ignore[method-assign]
    deliver(folder, uri)


@pytest.mark.slow
def test_kill_between_any_two_calls_doubles_nothing(server: Server, tmp_path: Path) -> None:
    at, killed = 0, True
    while killed:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "file").write_text("x")
        with Journal(folder) as journal:
            journal.start(experiment=f"killed{at}", name="r", params={"p": 1}, tags={"t": "1"})
            journal.metrics(1, {"a": 1.0, "b": math.nan})
            journal.artifact("file")
            journal.metrics(2, {"a": 2.0})
            journal.end("FINISHED")
        child = _FORK.Process(target=_deliver_and_die, args=(folder, server.uri, at))
        child.start()
        child.join()
        killed = child.exitcode == -signal.SIGKILL
        assert deliver(folder, server.uri)
        (run,) = runs_of(server.uri, f"killed{at}")
        assert run.info.status == "FINISHED" and run.info.run_id == run_id_of(folder)
        assert run.data.params == {"p": "1"} and run.data.tags["t"] == "1"
        assert points(server.uri, folder, "a") == [(1, 1.0), (2, 2.0)]
        assert len(points(server.uri, folder, "b")) == 1
    assert at > 25


def test_run_made_after_we_gave_up_on_it_is_dropped(server: Server, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", experiment="late")
    client = connect(server.uri)
    made_late: list[Callable[[], Any]] = []

    def too_slow(*args: Any, **kwargs: Any) -> Any:
        made_late.append(lambda: real(*args, **kwargs))
        raise requests.exceptions.ReadTimeout

    real = client.create_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "create_run", too_slow)
        with pytest.raises(TrackingError, match="ReadTimeout"):
            deliver(folder, server.uri)
        patch.setattr(client, "create_run", lambda *a, **k: (real(*a, **k), made_late.pop()())[0])
        assert deliver(folder, server.uri)
    (run,) = runs_of(server.uri, "late")
    assert run.info.run_id == run_id_of(folder) and run.info.status == "FINISHED"


def test_new_journal_in_an_old_folder_is_a_new_run(sqlite_uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 100)
    deliver(folder, sqlite_uri)
    first = run_id_of(folder)
    (folder / JOURNAL_NAME).unlink()
    write_run(folder, 5)
    assert deliver(folder, sqlite_uri)
    assert run_id_of(folder) != first
    assert len(points(sqlite_uri, folder, "lr")) == 5


def _deliver_whole(folder: Path, uri: str) -> None:
    assert deliver(folder, uri, wait_s=60)


def test_two_processes_deliver_one_folder(server: Server, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 2500, experiment="two")
    both = [_FORK.Process(target=_deliver_whole, args=(folder, server.uri)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert len(runs_of(server.uri, "two")) == 1
    for name in ("train/loss", "lr"):  # 5,000 points
        assert [s for s, _ in points(server.uri, folder, name)] == list(range(2500))


def test_refused_record_does_not_hold_up_the_rest(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Journal(folder) as journal:
        journal.start(experiment="refused", name="r")
        for step in range(20):
            journal.metrics(step, {"a": step, "b": step})
        journal.metrics(2**70, {"a": 7.0})
        journal.artifact("never written")
        journal.metrics(20, {"b": 1.0})
        with journal.path.open("a") as file:
            file.write('{"type":"metrics","step":5}\n{"type":"of the future"}\n')
        journal.end("FINISHED")
    assert deliver(folder, uri)
    assert len(points(uri, folder, "a")) == 20
    assert len(points(uri, folder, "b")) == 21
    assert the_run(uri, folder).info.status == "FINISHED"
    kept = [json.loads(x) for x in (folder / UNDELIVERABLE_NAME).read_text().splitlines()]
    assert [k["record"].get("step", k["record"].get("type")) for k in kept] == [
        2**70,
        "artifact",
        5,
        "of the future",
    ]
    assert all(k["reason"] for k in kept)


def test_names_and_texts_that_mlflow_does_not_take_are_made_to_fit(
    uri: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with Journal(folder) as journal:
        journal.start(
            experiment="säure; DROP TABLE runs--'\"",
            name="half \ud83d and nul \0",
            params={"lr@network=big": 1, "long" * 100: 2, "empty": ""},
            tags={"reason": "nul \0 and half \udc00", "": "no name", "big": "x" * 9000},
        )
        journal.metrics(1, {"val/acc@5": 0.5, "/abs": 1.0, "../up": 2.0, "": 3.0})
    assert deliver(folder, uri)
    run = the_run(uri, folder)
    assert run.data.params["lr_network_big"] == "1"
    assert sorted(len(k) for k in run.data.params) == [5, 14, 250]
    assert run.data.metrics["val/acc_5"] == 0.5
    assert sorted(run.data.metrics.values()) == [0.5, 1.0, 2.0, 3.0]
    assert run.data.tags["reason"] == "nul \ufffd and half ?"
    assert not (folder / UNDELIVERABLE_NAME).exists()


def test_run_deleted_in_mlflow_waits_for_its_return(uri: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", experiment="deleted")
    deliver(folder, uri)
    client = connect(uri)
    run_id = run_id_of(folder) or ""
    client.delete_run(run_id)
    with Journal(folder) as journal:
        journal.metrics(10, {"train/loss": 0.0})
    with pytest.raises(TrackingError, match="was deleted in MLflow"):
        deliver(folder, uri)
    assert not (folder / UNDELIVERABLE_NAME).exists()
    client.restore_run(run_id)
    assert deliver(folder, uri)
    assert len(points(uri, folder, "train/loss")) == 11


def test_the_end_alone_of_a_run_deleted_in_mlflow_waits_for_its_return(
    uri: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    with Journal(folder) as journal:
        journal.start(experiment="ended late", name="a")
        assert deliver(folder, uri)
        connect(uri).delete_run(run_id_of(folder) or "")
        journal.end("FINISHED")
    other = write_run(tmp_path / "b", experiment="ended late")
    summary = sync([tmp_path], uri)
    assert summary.delivered == (other,), "one run does not hold up the rest"
    assert "restore it to deliver the rest" in summary.left[folder]
    connect(uri).restore_run(run_id_of(folder) or "")
    assert deliver(folder, uri)
    assert the_run(uri, folder).info.status == "FINISHED"


def test_deleted_experiment_is_named(uri: str, tmp_path: Path) -> None:
    client = connect(uri)
    client.delete_experiment(client.create_experiment("gone"))
    folder = write_run(tmp_path / "run", experiment="gone")
    with pytest.raises(TrackingError, match="experiment 'gone' is deleted"):
        deliver(folder, uri)


def test_server_that_lost_its_data_gets_all_of_it(
    sqlite_uri: str, empty_database: Path, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run")
    deliver(folder, sqlite_uri)
    shutil.copy(empty_database, tmp_path / "new.db")
    uri = f"sqlite:///{tmp_path}/new.db"
    assert deliver(folder, uri), "what is delivered is not looked at again"
    assert runs_of(uri, "exp") == []
    with Journal(folder) as journal:
        journal.metrics(10, {"train/loss": 0.0})
    assert deliver(folder, uri)
    assert len(points(uri, folder, "train/loss")) == 11
    assert len(runs_of(uri, "exp")) == 1


def test_sync_delivers_what_lies_below_a_folder(sqlite_uri: str, tmp_path: Path) -> None:
    root = tmp_path / "multirun"
    done = write_run(root / "a" / "0")
    deliver(done, sqlite_uri)
    fresh = [write_run(root / "a" / "1"), write_run(root / "b")]
    deleted = write_run(root / "c", experiment="trash")
    client = connect(sqlite_uri)
    client.delete_experiment(client.create_experiment("trash"))
    summary = sync([root, root / "a"], sqlite_uri)
    assert list(summary.delivered) == fresh
    assert list(summary.unchanged) == [done]
    assert list(summary.left) == [deleted] and "deleted" in summary.left[deleted]


def test_folder_without_a_journal_is_delivered(sqlite_uri: str, tmp_path: Path) -> None:
    assert deliver(tmp_path, sqlite_uri)
    assert run_id_of(tmp_path) is None


def test_a_parent_known_by_its_folder_is_delivered_first(uri: str, tmp_path: Path) -> None:
    trial = tmp_path / "0"
    with Journal(trial) as journal:
        journal.start(experiment="nested", name="trial")
    seed = write_run(trial / "seed1", experiment="nested", parent_folder=trial)
    with FileLock(trial / "delivery.lock"):  # another process is at the parent
        assert not deliver(seed, uri)
        assert run_id_of(seed) is None
    moved = Path(shutil.move(trial, tmp_path / "elsewhere"))
    assert deliver(moved / "seed1", uri)
    tags = the_run(uri, moved / "seed1").data.tags
    assert tags["mlflow.parentRunId"] == run_id_of(moved)
    assert len(points(uri, moved / "seed1", "lr")) == 10
    assert deliver(moved, uri)
    assert len(runs_of(uri, "nested")) == 2

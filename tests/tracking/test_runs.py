from __future__ import annotations

import multiprocessing
import os
import socket
import sqlite3
import subprocess
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lzsweep.errors import TrackingError
from lzsweep.tracking import runs
from lzsweep.tracking.client import Outage, connect, redact, resolve_uri
from lzsweep.tracking.delivery import deliver
from lzsweep.tracking.journal import Journal
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.runs import (
    begin_parent,
    check_server,
    close_parent,
    code_version,
)
from tests.tracking.conftest import Server
from tests.tracking.test_delivery import points, runs_of, write_run
from tests.tracking.test_sender import sick_uri

__all__ = ["sick_uri"]
_FORK = multiprocessing.get_context("fork")


def test_server_that_answers_passes(uri: str) -> None:
    check_server(uri)


def test_new_sqlite_file_needs_only_a_place(tmp_path: Path) -> None:
    check_server(f"sqlite:///{tmp_path}/not/yet/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_that_is_deleted_is_refused(uri: str) -> None:
    client = connect(uri)
    one = uuid.uuid4().hex  # of this test: the server is that of others too
    check_server(uri, f"new {one}")
    kept = client.create_experiment(f"kept {one}")
    for name in (f"gone {one}", f"it's gone {one}"):
        client.delete_experiment(client.create_experiment(name))
        with pytest.raises(TrackingError, match=f"deleted, but .{name}. at .* is. Restore it"):
            check_server(uri, name)
    check_server(uri, f"kept {one}")
    assert client.get_experiment(kept).lifecycle_stage == "active"


def test_a_database_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", lambda engine: 1 / 0)
        with pytest.raises(Outage, match="division by zero"):
            connect(f"sqlite:///{file}")
    assert not file.exists(), "half of one would be taken for that of an older MLflow"
    assert connect(f"sqlite:///{file}").search_experiments()
    check_server(f"sqlite:///{file}")


def test_a_file_of_another_version_is_refused(sqlite_uri: str, tmp_path: Path) -> None:
    check_server(sqlite_uri)
    with closing(sqlite3.connect(tmp_path / "db" / "mlflow.db")) as db, db:
        db.execute("UPDATE alembic_version SET version_num = 'other'")
    with pytest.raises(TrackingError, match=r"must be of MLflow .* is of another version"):
        check_server(sqlite_uri)


def test_port_that_refuses(server: Server) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        uri = f"http://me:s3cret@127.0.0.1:{s.getsockname()[1]}"
        with pytest.raises(TrackingError, match="the connection was refused") as error:
            check_server(uri)
    assert "s3cret" not in str(error.value) and "\n" not in str(error.value)


def test_port_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_ANSWER_S", 0.5)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(TrackingError, match="did not answer in time"):
            check_server(f"http://127.0.0.1:{s.getsockname()[1]}")
    assert runs._CONNECT_S + 6.0 < 10


def test_host_that_does_not_exist() -> None:
    with pytest.raises(TrackingError, match=r"http://no-such-host.invalid:5000, but .*host"):
        check_server("http://no-such-host.invalid:5000")


def test_server_that_is_sick_or_not_mlflow(sick_uri: str, server: Server) -> None:
    with pytest.raises(TrackingError, match="answered with error 500"):
        check_server(sick_uri)
    with pytest.raises(TrackingError, match=r"no MLflow server \(status 404\)"):
        check_server(f"{server.uri}/wrong/prefix")


def test_server_that_wants_a_password(tmp_path: Path) -> None:
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            # "me:right" in base 64
            known = self.headers.get("Authorization") == "Basic bWU6cmlnaHQ="
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(b"{}" if known else b"You are not authenticated")

        def log_message(self, *args: object) -> None:
            pass

    guarded = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=guarded.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{guarded.server_port}"
    with pytest.raises(TrackingError, match="refuses our name or password") as error:
        check_server(f"http://me:wr0ng@{host}")
    assert "wr0ng" not in str(error.value)
    check_server(f"http://me:right@{host}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
        check_server(f"http://{host}")
    guarded.shutdown()


def test_sqlite_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(TrackingError, match=r"text.db is not: file is not a database"):
        check_server(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(TrackingError, match=r"text.db is no folder that we may write"):
        check_server(f"sqlite:///{tmp_path}/text.db/mlflow.db")
    with pytest.raises(TrackingError, match="unable to open"):
        (tmp_path / "folder.db").mkdir()
        check_server(f"sqlite:///{tmp_path}/folder.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_sqlite_file_without_leave_to_write(sqlite_uri: str, tmp_path: Path) -> None:
    (tmp_path / "db" / "mlflow.db").chmod(0o444)
    with pytest.raises(TrackingError, match="readonly"):
        check_server(sqlite_uri)


def test_sqlite_file_in_use_is_no_fault(sqlite_uri: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db" / "mlflow.db")) as db:
        db.execute("BEGIN")
        check_server(sqlite_uri)


@pytest.mark.parametrize("uri", ["mlflow.db", "file:///tmp/mlruns", "sqlite://", "http://", ""])
def test_forms_of_uri_that_are_not_served(uri: str) -> None:
    with pytest.raises(TrackingError, match="Without a server use sqlite"):
        check_server(uri)


def test_relative_sqlite_path_means_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///a/m.db") == f"sqlite:///{tmp_path}/a/m.db"
    assert resolve_uri("sqlite:////a/m.db") == "sqlite:////a/m.db"
    assert resolve_uri("https://host/prefix/") == "https://host/prefix"


@pytest.mark.parametrize(
    "text",
    [
        "https://me:s3cret@host/p failed",
        "postgresql+psycopg://me:s3cret@host:5432/db?sslmode=require",
        "https://me:a:s3cret@x@host",
        "https://s3cret@host",
        "postgresql://me:a/s3cret#b?c@host/db",  # not right, but SQLAlchemy takes it
        "http://host/?token=s3cret&x=1",
        "host=h password=s3cret user=u",
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    assert "s3cret" not in redact(text) and "host" in redact(text)


def test_what_is_no_secret_stays() -> None:
    for text in ("http://host:5000/#/a@b", "http://host/models:/a@champion and https://b/c@d"):
        assert redact(text) == text


def test_artifacts_lie_beside_the_database(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = tmp_path / "run"
    with Journal(folder) as journal:
        journal.start(experiment="a b/ü", name="r")
        journal.artifact("journal.jsonl")
    deliver(folder, sqlite_uri)
    (file,) = (tmp_path / "db" / "mlruns").rglob("journal.jsonl")
    assert run_id_of(folder) in file.parts
    assert list(elsewhere.iterdir()) == []


def make_parent(folder: Path, uri: str, **run: Any) -> str:
    begin_parent(folder, **run)
    assert deliver(folder, uri, wait_s=60)
    return run_id_of(folder) or ""


def test_parent_is_one_run_with_its_children(uri: str, tmp_path: Path) -> None:
    first = make_parent(
        tmp_path / "s", uri, experiment="p", study="size' \"lr", description="**q**"
    )
    child = write_run(tmp_path / "s" / "0", experiment="p", parent_run_id=first)
    deliver(child, uri)
    assert close_parent(tmp_path / "s", uri, "KILLED")
    client = connect(uri)
    assert client.get_run(first).info.status == "KILLED"
    again = make_parent(tmp_path / "s", uri, experiment="p", study="size' \"lr")
    from_elsewhere = make_parent(tmp_path / "t", uri, experiment="p", study="size' \"lr")
    other = make_parent(tmp_path / "u", uri, experiment="p", study="another")
    assert first == again == from_elsewhere != other
    run = client.get_run(first)
    assert (run.info.status, run.info.run_name) == ("RUNNING", "size' \"lr")
    assert run.data.tags["lzsweep.kind"] == "study"
    assert run.data.tags["mlflow.note.content"] == "**q**"
    assert len(runs_of(uri, "p")) == 3
    assert close_parent(tmp_path / "s", uri, "FINISHED", description="done")
    assert client.get_run(first).data.tags["mlflow.note.content"] == "done"


def _open_same_study(folder: Path, uri: str, answers: object) -> None:
    answers.put(make_parent(folder, uri, experiment="race", study="s"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("same_folder", [True, False])
def test_parent_opened_by_many_at_once_is_one(
    server: Server, tmp_path: Path, same_folder: bool
) -> None:
    uri = server.uri
    folder = tmp_path / f"race{same_folder}"
    answers = _FORK.Queue()
    processes = [
        _FORK.Process(
            target=_open_same_study,
            args=(folder if same_folder else folder / str(i), uri, answers),
        )
        for i in range(4)
    ]
    for process in processes:
        process.start()
    ids = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(ids) == 1
    assert {r.info.run_id for r in runs_of(uri, "race")} == ids


def test_study_ends_without_its_server(own_server: Server, tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "s", own_server.uri, experiment="p", study="s")
    own_server.kill()
    assert not close_parent(tmp_path / "s", own_server.uri, "FINISHED")
    with pytest.raises(TrackingError, match="does not take"):
        make_parent(tmp_path / "t", own_server.uri, experiment="p", study="t")
    own_server.start()
    assert deliver(tmp_path / "s", own_server.uri)
    assert connect(own_server.uri).get_run(parent).info.status == "FINISHED"


def _use_new_database(folder: Path, uri: str) -> None:
    assert deliver(write_run(folder, 200), uri, wait_s=120)


@pytest.mark.slow
def test_processes_share_a_new_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    folders = [tmp_path / str(i) for i in range(4)]
    processes = [_FORK.Process(target=_use_new_database, args=(f, uri)) for f in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(runs_of(uri, "exp")) == 4
    for folder in folders:
        assert [s for s, _ in points(uri, folder, "lr")] == list(range(200))


def test_code_version_names_commit_versions_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    tags = code_version()
    assert tags["lzsweep.slurm.job_id"] == "77"
    assert tags["lzsweep.version.mlflow"] and tags["lzsweep.host"]
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("git was asked twice"))
    assert code_version() == tags


def test_changed_code_is_told_from_committed_code(tmp_path: Path) -> None:
    assert runs._git_tags(tmp_path) == {}

    def git(*args: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(
            ["git", *identity, *args], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("a = 1")
    git("add", ".")
    git("commit", "-qm", "Begin")
    clean = {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "lzsweep.git.dirty": "false"}
    (tmp_path / "notes.txt").write_text("untracked")
    assert runs._git_tags(tmp_path) == clean
    (tmp_path / "code.py").write_text("a = 2")
    changed = runs._git_tags(tmp_path)
    digest = changed.pop("lzsweep.git.changes")
    assert changed == clean | {"lzsweep.git.dirty": "true"}
    (tmp_path / "code.py").write_text("a = 3")
    assert runs._git_tags(tmp_path)["lzsweep.git.changes"] != digest
    (tmp_path / "code.py").write_text("a = 2")
    assert runs._git_tags(tmp_path)["lzsweep.git.changes"] == digest


def test_code_is_another_one_without_any_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where a wheel was installed: there only the versions tell."""
    wheel = {"lzsweep.version.lzsweep": "1.0", "lzsweep.version.torch": "2.1", "lzsweep.host": "a"}
    monkeypatch.setattr(runs, "code_version", lambda: wheel)
    assert runs.changed_code({**wheel, "lzsweep.host": "b"}) is None
    assert runs.changed_code({**wheel, "lzsweep.version.torch": "2.0"}) == (
        "torch 2.0", "torch 2.1",
    )  # fmt: skip
    edited = {**wheel, "mlflow.source.git.commit": "abc", "lzsweep.git.changes": "12"}
    assert runs.changed_code(edited) == (
        "commit abc, uncommitted changes 12", "no commit, no uncommitted changes",
    )  # fmt: skip
    assert runs.changed_code({}) == ("no lzsweep, no torch", "lzsweep 1.0, torch 2.1")

"""`serve --shared` as an ordinary user: real PostgreSQL, real passwords, killed and restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import requests

from lzsweep.errors import UserError
from lzsweep.tracking.postgres import write_secret
from lzsweep.tracking.shared import default_hosts, existing_server, is_open, open_home
from tests.server.conftest import STUDY
from tests.sweep.conftest import Cli
from tests.sweep.test_sweep import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.server]
NOBODY = 65534


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass
class Shared:
    """A shared server that an ordinary user runs."""

    home: Path
    port: int
    postgres_port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def secrets(self) -> Mapping[str, str]:
        known: dict[str, str] = json.loads((self.home / "secrets.json").read_text())
        return known

    @property
    def login(self) -> tuple[str, str]:
        return "admin", self.secrets["admin"]

    def call(self, path: str, body: Any, password: str | None = None) -> requests.Response:
        login = ("admin", password) if password is not None else self.login
        return requests.post(
            f"{self.uri}/api/2.0/mlflow/{path}", json=body, auth=login, timeout=60
        )

    def studies(self, password: str, user: str = "lzsweep", database: str = "lzsweep") -> str:
        return (
            f"host=127.0.0.1 port={self.postgres_port} dbname={database} user={user}"
            f" password={password} connect_timeout=10"
        )


def command(*arguments: str) -> list[str]:
    plain = [sys.executable, "-m", "lzsweep", "serve", *arguments]
    if os.geteuid() == 0:
        ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        return ["setpriv", *ids, "--", *plain]
    return plain


def start(home: Path, port: int, postgres_port: int) -> Shared:
    log = home.parent / "serve.log"
    options = ["--port", str(port), "--postgres-port", str(postgres_port), "--home", str(home)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command("--shared", *options),
            cwd=home.parent,
            env={**os.environ, "HOME": str(home.parent)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    shared = Shared(home, port, postgres_port, process, log)
    wait_for(lambda: "users.env" in log.read_text() or process.poll() is not None, 300)
    assert process.poll() is None, log.read_text()
    return shared


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    # pytest's own folders are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="lzsweep-"))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    served = start(folder / "home", free_port(), free_port())
    yield served
    for process in (psutil.Process(served.process.pid), *family(served)):
        process.kill()
    served.process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def family(shared: Shared) -> list[psutil.Process]:
    return psutil.Process(shared.process.pid).children(recursive=True)


def test_only_who_knows_the_password_gets_in(shared: Shared) -> None:
    search = {"max_results": 1}
    assert shared.call("experiments/search", search).status_code == 200
    for wrong in ("", "wrong", "password1234"):
        assert shared.call("experiments/search", search, wrong).status_code == 401
    for path in ("", "get-artifact?path=x", "api/2.0/mlflow-artifacts/artifacts?path="):
        assert requests.get(f"{shared.uri}/{path}", timeout=30).status_code == 401, path
    assert requests.get(f"{shared.uri}/health", timeout=30).text == "OK"
    psycopg.connect(shared.studies(shared.secrets["studies"])).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(shared.studies("wrong"))
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba.conf entry|permission denied"):
        psycopg.connect(shared.studies(shared.secrets["studies"], database="mlflow"))


def test_strangers_hosts_are_refused(shared: Shared) -> None:
    url = f"{shared.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    evil = requests.get(url, headers={"Host": "evil.example"}, auth=shared.login, timeout=30)
    assert evil.status_code == 403
    assert "localhost:*" in default_hosts()


def test_secrets_stay_secret(shared: Shared) -> None:
    for name in ("secrets.json", "pgpass", "users.env", "users.pgpass", "auth.ini"):
        mode = stat.S_IMODE((shared.home / name).stat().st_mode)
        assert mode == 0o600, name
    assert stat.S_IMODE(shared.home.stat().st_mode) == 0o700
    words = set(shared.secrets.values())
    for process in (psutil.Process(shared.process.pid), *family(shared)):
        line = " ".join(process.cmdline())
        assert not any(word in line for word in words), "in the list of processes"
    kept = [(shared.home / "auth.ini").read_text(), (shared.home / "postgres.log").read_text()]
    assert not any(word in text for text in kept for word in words)
    printed = shared.log.read_text()
    assert printed.count(shared.secrets["admin"]) == 1, "shown once"
    assert shared.secrets["mlflow"] not in printed
    assert shared.secrets["superuser"] not in printed


def test_artifacts_are_kept_in_their_place(shared: Shared) -> None:
    base = f"{shared.uri}/api/2.0/mlflow-artifacts/artifacts"
    (shared.home.parent / "outside").write_text("secret")
    put = requests.put(f"{base}/a/b.bin", data=b"x" * 3_000_000, auth=shared.login, timeout=60)
    assert put.status_code == 200
    got = requests.get(f"{base}/a/b.bin", auth=shared.login, timeout=60)
    assert len(got.content) == 3_000_000
    for path in (
        "..%2Foutside",
        "%2e%2e/outside",
        "a/..%2F..%2F..%2Foutside",
        "..%252Foutside",
        "%2Fetc%2Fpasswd",
    ):
        answer = requests.get(f"{base}/{path}", auth=shared.login, timeout=30)
        assert answer.status_code >= 400, path
        assert b"secret" not in answer.content
        requests.put(f"{base}/{path}", data=b"changed", auth=shared.login, timeout=30)
    assert (shared.home.parent / "outside").read_text() == "secret"


def make_run(shared: Shared) -> str:
    experiment = shared.call("experiments/create", {"name": f"e{free_port()}"}).json()
    answer = shared.call("runs/create", {"experiment_id": experiment["experiment_id"]})
    return str(answer.json()["run"]["info"]["run_id"])


def test_odd_texts_come_back_as_they_went(shared: Shared) -> None:
    run = make_run(shared)
    texts = {
        "html": "<script>alert(1)</script>",
        "sql": "'; DROP TABLE runs; --",
        "emoji": "späte Partie 🎉 圍棋",
    }
    for key, value in texts.items():
        body = {"run_id": run, "key": key, "value": value}
        assert shared.call("runs/log-parameter", body).status_code == 200
    long = {"run_id": run, "key": "long", "value": "x" * 10_000}
    assert shared.call("runs/log-parameter", long).status_code == 200
    texts["long"] = "x" * 6000  # MLflow's limit; it cuts
    login = shared.login
    found = requests.get(
        f"{shared.uri}/api/2.0/mlflow/runs/get?run_id={run}", auth=login, timeout=30
    ).json()["run"]["data"]["params"]
    assert {p["key"]: p["value"] for p in found} == texts


def test_killed_and_started_again_nothing_is_lost(shared: Shared, tmp_path: Path) -> None:
    run = make_run(shared)
    for step in range(20):
        body = {"run_id": run, "key": "m", "value": step, "timestamp": step, "step": step}
        assert shared.call("runs/log-metric", body).status_code == 200
    secrets = shared.secrets
    with psycopg.connect(shared.studies(secrets["studies"]), autocommit=True) as database:
        database.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    server = psutil.Process(shared.process.pid)
    server.send_signal(signal.SIGKILL)  # PostgreSQL is left alone, or dies with it
    shared.process.wait()
    again = start(shared.home, shared.port, shared.postgres_port)
    shared.process = again.process
    assert again.secrets == secrets
    assert secrets["admin"] not in again.log.read_text(), "shown once only"
    history = requests.get(
        f"{shared.uri}/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m",
        auth=shared.login,
        timeout=60,
    ).json()
    assert [m["value"] for m in history["metrics"]] == list(range(20))
    check_backup(shared)


def check_backup(shared: Shared) -> None:
    """Saved while it runs; lost; put back after it was stopped."""
    archive = shared.home.parent / "saved.tar"
    options = [
        "--shared",
        "--home",
        str(shared.home),
        "--postgres-port",
        str(shared.postgres_port),
    ]
    done = subprocess.run(
        command("backup", str(archive), *options), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with psycopg.connect(shared.studies(shared.secrets["studies"]), autocommit=True) as database:
        database.execute("DROP TABLE kept")
    busy = subprocess.run(
        command("restore", str(archive), *options), capture_output=True, text=True
    )
    assert busy.returncode == 2
    assert "must be stopped first" in busy.stderr
    shared.process.send_signal(signal.SIGTERM)
    assert shared.process.wait(120) == 0
    back = subprocess.run(
        command("restore", str(archive), *options), capture_output=True, text=True
    )
    assert back.returncode == 0, back.stderr
    again = start(shared.home, shared.port, shared.postgres_port)
    shared.process = again.process
    with psycopg.connect(shared.studies(shared.secrets["studies"])) as database:
        assert database.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_mistakes_are_one_line(cli: Cli, work: Path) -> None:
    code, _, err = cli("serve", "--shared", "--postgres", "postgresql://me:pw@host/")
    assert code == 2
    assert "pw" not in err.replace("a password", "")
    with pytest.raises(UserError, match=r"must be postgresql://USER@HOST"):
        existing_server("sqlite:///x.db")
    with open_home(work / "home"):
        assert is_open(work / "home")
        with pytest.raises(UserError, match="another one has"), open_home(work / "home"):
            pass
    assert not is_open(work / "home")
    write_secret(work / "home" / "secrets.json", "{}")
    with pytest.raises(UserError, match="is damaged"), open_home(work / "home"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone is refused")
def test_root_is_refused(cli: Cli, work: Path) -> None:
    arguments = ["--shared", "--port", "0", "--home", str(work / "home")]
    code, _, err = cli("serve", *arguments)
    assert code == 2
    assert "PostgreSQL refuses to run as root" in err


def test_sqlite_databases_are_saved_and_put_back(here: Cli, swept: Path, tmp_path: Path) -> None:
    archive = str(tmp_path / "saved.tar")
    code, out, err = here("serve", "backup", archive)
    assert code == 0, err
    assert "mlflow.db, lzsweep.db" in out
    code, _, err = here("serve", "restore", archive)
    assert code == 2
    assert "mlflow.db, lzsweep.db is there; move it away" in err
    empty = tmp_path / "empty"
    empty.mkdir()
    os.chdir(empty)
    code, out, err = here("serve", "restore", archive)
    assert code == 0, err
    code, out, err = here("list")
    assert code == 0, err
    assert STUDY in out
    assert (empty / "mlflow.db").stat().st_size == (swept / "mlflow.db").stat().st_size

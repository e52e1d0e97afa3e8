"""`serve --shared` as an ordinary user: real PostgreSQL, real passwords, killed and restarted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import psycopg
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from benchmarks.crowd import count_metrics, log_at_once, make_runs
from benchmarks.shared import SharedServer, shared_server
from lzsweep.errors import UserError
from lzsweep.files import write_secret
from lzsweep.go.weights import read_weights
from lzsweep.sweep.studies import find_study, open_study
from lzsweep.tracking.delivery import deliver
from lzsweep.tracking.journal import Journal, read_records
from lzsweep.tracking.outbox import UNDELIVERABLE_NAME, is_delivered, run_id_of
from lzsweep.tracking.shared import allowed, existing_server, is_open, names_of, open_home
from lzsweep.train.player import Player, planes_after
from tests.server.conftest import STUDY
from tests.sweep.conftest import FAULTY, Cli, check_study, faulty
from tests.sweep.fork import let_go_on, wait_for_trials
from tests.sweep.test_sweep import wait_for
from tests.tracking.conftest import empty_database

__all__ = ["empty_database", "faulty"]

pytestmark = [pytest.mark.slow, pytest.mark.server]
MAX_UPLOAD = 5_000_000
FILES = "api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedServer]:
    with shared_server("--max-upload-gb", str(MAX_UPLOAD / 1e9)) as server:
        yield server


@pytest.fixture
def user(shared: SharedServer, monkeypatch: pytest.MonkeyPatch) -> SharedServer:
    """The server, and what its users export."""
    for name, value in shared.environment.items():
        monkeypatch.setenv(name, value)
    return shared


def login(shared: SharedServer) -> tuple[str, str]:
    return "admin", shared.secrets["admin"]


def call(
    shared: SharedServer, path: str, body: Any, password: str | None = None
) -> requests.Response:
    known = login(shared) if password is None else ("admin", password)
    return requests.post(f"{shared.uri}/api/2.0/mlflow/{path}", json=body, auth=known, timeout=60)


def studies(shared: SharedServer, password: str = "", database: str = "lzsweep") -> str:
    return (
        f"host=127.0.0.1 port={shared.postgres_port} dbname={database} user=lzsweep"
        f" password={password or shared.secrets['studies']} connect_timeout=10"
    )


def test_only_who_knows_the_password_gets_in(shared: SharedServer) -> None:
    search = {"max_results": 1}
    assert call(shared, "experiments/search", search).status_code == 200
    for wrong in ("", "wrong", "password1234"):
        assert call(shared, "experiments/search", search, wrong).status_code == 401
    for path in ("", "get-artifact?path=x", f"{FILES}?path="):
        assert requests.get(f"{shared.uri}/{path}", timeout=30).status_code == 401, path
    assert requests.get(f"{shared.uri}/health", timeout=30).text == "OK"
    psycopg.connect(studies(shared)).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(studies(shared, "wrong"))
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba.conf entry|permission denied"):
        psycopg.connect(studies(shared, database="mlflow"))


def test_strangers_hosts_are_refused(shared: SharedServer) -> None:
    url = f"{shared.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    evil = requests.get(url, headers={"Host": "evil.example"}, auth=login(shared), timeout=30)
    assert evil.status_code == 403


def test_its_own_page_works_under_every_name_and_no_others_does(shared: SharedServer) -> None:
    """A browser says in each request which page it comes from."""

    def search(host: str, origin: str) -> int:
        url = f"http://127.0.0.1:{shared.port}/ajax-api/2.0/mlflow/runs/search"
        headers = {"Host": f"{host}:{shared.port}", "Origin": origin}
        body: Any = {"experiment_ids": ["0"], "max_results": 1}
        answer = requests.post(url, json=body, headers=headers, auth=login(shared), timeout=30)
        return answer.status_code

    name = socket.gethostname()
    assert search(name, f"http://{name}:{shared.port}") == 200
    assert search("127.0.0.1", f"http://127.0.0.1:{shared.port}") == 200
    assert search(name, "http://evil.example") == 403
    assert search(name, f"http://{name}:{shared.port + 1}") == 403


def test_what_may_stand_in_a_host_and_in_an_origin() -> None:
    assert allowed(["lab.example", "gate:8443"], 5000) == (
        "lab.example,lab.example:*,gate:8443",
        "http://lab.example,http://lab.example:5000,https://lab.example,https://lab.example:5000,"
        "http://gate:8443,https://gate:8443",
    )
    assert allowed(["*"], 5000) == ("*", "*")
    assert allowed(["[fd00::1]"], 5000)[0] == "[fd00::1],[[]fd00::1]:*"
    assert {"192.168.1.5", "localhost", socket.getfqdn()} <= set(names_of("192.168.1.5"))
    assert "[fd00::1]" in names_of("fd00::1")
    assert "0.0.0.0" not in names_of("0.0.0.0")


def test_secrets_stay_secret(shared: SharedServer) -> None:
    own = {"secrets.json", "pgpass", "users.env", "users.pgpass"}
    for name in (*own, "auth.ini"):
        mode = stat.S_IMODE((shared.home / name).stat().st_mode)
        assert mode == 0o600, name
    assert stat.S_IMODE(shared.home.stat().st_mode) == 0o700
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        assert not known_in(words.encode(), shared), "in the list of processes"
    for path in shared.home.rglob("*"):
        if path.is_file() and path.name not in own:
            assert not known_in(path.read_bytes(), shared), path
    printed = shared.log.read_text()
    assert printed.count(shared.secrets["admin"]) == 1, "shown once"
    assert shared.secrets["mlflow"] not in printed
    assert shared.secrets["superuser"] not in printed


def known_in(text: bytes, shared: SharedServer) -> bool:
    return any(word.encode() in text for word in shared.secrets.values())


def test_artifacts_are_kept_in_their_place(shared: SharedServer) -> None:
    base = f"{shared.uri}/{FILES}"
    outside = shared.home.parent / "outside"
    outside.write_text("secret")
    put = requests.put(f"{base}/a/b.bin", data=b"x" * 3_000_000, auth=login(shared), timeout=60)
    assert put.status_code == 200
    got = requests.get(f"{base}/a/b.bin", auth=login(shared), timeout=60)
    assert len(got.content) == 3_000_000
    for path in (
        "..%2Foutside",
        "%2e%2e/outside",
        "a/..%2F..%2F..%2Foutside",
        "..%252Foutside",
        "%2Fetc%2Fpasswd",
    ):
        answer = requests.get(f"{base}/{path}", auth=login(shared), timeout=30)
        assert answer.status_code >= 400, path
        assert b"secret" not in answer.content
        requests.put(f"{base}/{path}", data=b"changed", auth=login(shared), timeout=30)
    assert outside.read_text() == "secret"


def uploaded(shared: SharedServer) -> set[str]:
    return {p.name for p in (shared.home / "artifacts").rglob("*") if p.is_file()}


def test_what_is_too_large_is_refused_and_not_kept(shared: SharedServer) -> None:
    base = f"{shared.uri}/{FILES}"
    keep: Any = {"auth": login(shared), "timeout": 60}
    assert requests.put(f"{base}/big/kept.bin", data=b"kept", **keep).ok
    before = uploaded(shared)
    large = b"x" * (MAX_UPLOAD + 1)
    pieces = (large[n : n + 65536] for n in range(0, len(large), 65536))
    for name, data in (("kept.bin", large), ("announced.bin", large), ("chunked.bin", pieces)):
        answer = requests.put(f"{base}/big/{name}", data=data, **keep)
        assert answer.status_code == 413, name
        assert "must have at most 5,000,000 bytes here" in answer.json()["message"]
        assert "--max-upload-gb" in answer.json()["message"]
    assert requests.get(f"{base}/big/kept.bin", **keep).content == b"kept"
    assert requests.put(f"{base}/big/most.bin", data=large[1:], **keep).ok
    # What is no file is read whole into memory, before anybody asks for a password.
    answer = requests.post(
        f"{shared.uri}/api/2.0/mlflow/runs/log-batch", data=b" " * (65 * 2**20), timeout=60
    )
    assert answer.status_code == 413
    assert uploaded(shared) == before | {"most.bin"}


def test_an_upload_that_breaks_off_leaves_nothing(shared: SharedServer) -> None:
    before = uploaded(shared)
    request = requests.Request(
        "PUT", f"{shared.uri}/{FILES}/broken/half.bin", data=b"x" * 3_000_000, auth=login(shared)
    ).prepare()
    fields: dict[str, Any] = dict(request.headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", shared.port)) as line:
        text = f"PUT {request.path_url} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n"
        line.sendall(text.encode() + b"x" * 1_000_000)
        folder = shared.home / "artifacts" / "broken"
        wait_for(lambda: folder.is_dir() and any(folder.iterdir()))  # it began to write
    wait_for(lambda: uploaded(shared) == before)
    assert not any(folder.iterdir()), "nor anything half-written that is no artifact"


def test_a_run_with_a_file_too_large_is_delivered_without_it(
    user: SharedServer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "large.bin").write_bytes(bytes(MAX_UPLOAD + 1))
    (folder / "small.bin").write_bytes(b"small")
    with Journal(folder) as journal:
        journal.start(experiment="large", name="large")
        journal.artifact("large.bin")
        journal.artifact("small.bin")
        journal.metrics(1, {"val/loss": 0.5})
        journal.end("FINISHED")
    deliver(folder, user.uri, wait_s=60)
    assert is_delivered(folder)
    run_id = run_id_of(folder) or ""
    client = MlflowClient(user.uri)
    assert client.get_run(run_id).data.metrics == {"val/loss": 0.5}
    assert [f.path for f in client.list_artifacts(run_id)] == ["small.bin"]
    (left,) = (folder / UNDELIVERABLE_NAME).read_text().splitlines()
    assert "must have at most 5,000,000 bytes here" in json.loads(left)["reason"]


def make_run(shared: SharedServer, name: str = "") -> str:
    experiment = call(shared, "experiments/create", {"name": f"{name}{uuid.uuid4()}"}).json()
    body = {"experiment_id": experiment["experiment_id"], "run_name": name or "run"}
    answer = call(shared, "runs/create", body)
    return str(answer.json()["run"]["info"]["run_id"])


SQL = "'; DROP TABLE runs; --"


def test_odd_texts_come_back_as_they_went(shared: SharedServer) -> None:
    run = make_run(shared, SQL)
    texts = {
        "html": "<script>alert(1)</script>",
        "sql": SQL,
        "emoji": "späte Partie 🎉 圍棋",
    }
    for key, value in texts.items():
        body = {"run_id": run, "key": key, "value": value}
        assert call(shared, "runs/log-parameter", body).status_code == 200
    long = {"run_id": run, "key": "long", "value": "x" * 10_000}
    assert call(shared, "runs/log-parameter", long).status_code == 200
    texts["long"] = "x" * 6000  # MLflow's limit; it cuts
    found = requests.get(
        f"{shared.uri}/api/2.0/mlflow/runs/get?run_id={run}", auth=login(shared), timeout=30
    ).json()["run"]
    assert {p["key"]: p["value"] for p in found["data"]["params"]} == texts
    assert found["info"]["run_name"] == SQL
    # A name in a search is a value too, not a part of the statement.
    search = {
        "experiment_ids": [found["info"]["experiment_id"]],
        "filter": f'attributes.run_name = "{SQL}" AND params.sql = "{SQL}"',
    }
    (hit,) = call(shared, "runs/search", search).json()["runs"]
    assert hit["info"]["run_id"] == run
    bad = {**search, "filter": f"params.sql = '{SQL}'"}
    assert call(shared, "runs/search", bad).status_code == 400
    assert call(shared, "runs/search", {**search, "order_by": [SQL]}).status_code == 400
    assert call(shared, "runs/search", search).json()["runs"] == [hit]


def test_many_clients_at_once_lose_nothing(user: SharedServer) -> None:
    experiment = MlflowClient(user.uri).create_experiment("crowd")
    logged = log_at_once(user.uri, experiment, n_clients=32, seconds=6)
    assert [error for one in logged for error in one.errors] == []
    assert all(one.n_calls for one in logged)
    with user.connect() as database:
        n_kept = count_metrics(database, [one.run_id for one in logged])
    assert n_kept == sum(one.n_metrics for one in logged) >= 320


def test_a_thousand_runs_are_found(user: SharedServer) -> None:
    client = MlflowClient(user.uri)
    experiment = client.create_experiment("full")
    with user.connect() as database:
        make_runs(client, database, experiment, n_runs=1000, n_params=20)
    newest = ["attributes.start_time DESC"]
    runs = client.search_runs([experiment], max_results=1000, order_by=newest)
    assert [run.info.run_name for run in runs] == [f"run-{n}" for n in range(1000, 0, -1)]
    for number, run in zip(range(1000, 0, -1), runs, strict=True):
        assert run.data.params == {f"p{n}": f"{n}.{number}" for n in range(20)}
        assert run.data.metrics == {"val/loss": 1.0}
    (one,) = client.search_runs([experiment], "params.p3 = '3.77'")
    assert one.info.run_name == "run-77"


NIGHT = 'späte "Nacht"; DROP TABLE trials; -- <b> 🎉'


def test_a_sweep_goes_on_when_the_whole_server_was_killed(
    user: SharedServer, cli: Cli, faulty: Path
) -> None:
    storage = os.environ["LZSWEEP_STORAGE"]
    killed: list[tuple[int, int]] = []

    def kill_and_start() -> None:
        wait_for_trials(faulty, 2)
        let_go_on(faulty)
        study = open_study(storage, NIGHT)
        wait_for(lambda: sum(t.is_finished for t in study.trials()) >= 3, timeout_s=400)
        n_finished = sum(t.is_finished for t in study.trials())
        killed.append((n_finished, len(user.family())))
        user.kill()
        user.start()

    thread = threading.Thread(target=kill_and_start)
    thread.start()
    code, out, err = cli(
        "-m", *FAULTY, f"study.name='{NIGHT}'", "module.fault=wait", "module.batch_s=0.1",
        "lr=0.1,0.2,0.3,0.4", "module.size=1,2,3", "hydra.sweep.dir=multirun/night",
    )  # fmt: skip
    thread.join()
    assert code == 0, err
    ((n_before, n_processes),) = killed
    assert 3 <= n_before < 12, "in the middle"
    assert n_processes > 5, "PostgreSQL's too"
    status = check_study(cli, faulty, NIGHT, 12, uri=user.uri)
    assert status["states"]["complete"] == 12
    assert len({tuple(t["params"].values()) for t in status["trials"]}) == 12
    # Every value that a trial wrote down is in the database, once.
    n_written = 0
    for trial in status["trials"]:
        journal = Path(trial["folder"]) / "journal.jsonl"
        n_written += sum(len(r.get("values", {})) for r, _ in read_records(journal))
    with user.connect() as database:
        assert count_metrics(database, [t["run_id"] for t in status["trials"]]) == n_written > 200
        texts = database.execute("SELECT value FROM params UNION SELECT value FROM tags")
        assert not known_in(repr(texts.fetchall()).encode(), user)
    assert not known_in((out + err).encode(), user)
    for path in faulty.rglob("*"):
        assert not path.is_file() or not known_in(path.read_bytes(), user), path
    assert find_study(storage, NIGHT) is not None


def test_the_winner_gets_out_through_passwords_alone(
    user: SharedServer, cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("study.n_trials=1", "network.blocks=1", "network.filters=4")
    cli.sweep("study.name=winner", *small, "lr=interval(0.01,0.02)", "hydra.sweep.dir=multirun/w")
    run_id = cli.status("winner")["best"]["run_id"]
    champion = "models:/way-out@champion"
    commands = [
        ("promote", "winner", "--name", "way-out"),
        ("export", champion, "-o", "model.txt.gz"),
        ("export", run_id, "-o", "run.txt.gz"),
        ("export", "winner", "-o", "study.txt.gz"),
    ]
    for command in commands:
        if command[1] == "winner" and command[0] == "export":
            shutil.rmtree(work / "multirun")  # as on another machine
        code, out, err = cli(*command)
        assert code == 0, err
        assert not known_in((out + err).encode(), user)
    kept = [read_weights(work / f"{name}.txt.gz") for name in ("model", "run", "study")]
    boards = planes_after(["Q16", "D4"])[None]
    answers = [Player(weights).predict(boards) for weights in kept]
    mlflow.set_tracking_uri(user.uri)
    answers.append(mlflow.pyfunc.load_model(champion).predict(boards))
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer["policy"], answers[0]["policy"])
        np.testing.assert_array_equal(answer["value"], answers[0]["value"])

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-one")
    for command in commands:
        code, out, err = cli(*command)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "it refuses our name or password (set MLFLOW_TRACKING_USERNAME" in err
        assert "not-the-one" not in err
    with pytest.raises(MlflowException, match="401"):
        mlflow.pyfunc.load_model(champion)
    monkeypatch.setenv("PGPASSFILE", str(work / "none"))
    monkeypatch.setenv("PGPASSWORD", "not-the-one")
    for command in commands[::3]:
        code, out, err = cli(*command)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "password authentication failed" in err
        assert "not-the-one" not in err


def test_killed_alone_it_stops_the_database_it_left(shared: SharedServer) -> None:
    run = make_run(shared)
    for step in range(20):
        body = {"run_id": run, "key": "m", "value": step, "timestamp": step, "step": step}
        assert call(shared, "runs/log-metric", body).status_code == 200
    secrets = shared.secrets
    with psycopg.connect(studies(shared), autocommit=True) as database:
        database.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert shared.process is not None
    shared.process.kill()  # PostgreSQL goes on
    shared.process.wait()
    shared.start()
    assert shared.secrets == secrets
    assert secrets["admin"] not in shared.log.read_text(), "shown once only"
    history = requests.get(
        f"{shared.uri}/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m",
        auth=login(shared),
        timeout=60,
    ).json()
    assert [m["value"] for m in history["metrics"]] == list(range(20))
    check_backup(shared)


def check_backup(shared: SharedServer) -> None:
    """Saved while it runs; lost; put back after it was stopped."""
    archive = str(shared.home.parent / "saved.tar")
    done = shared.run("backup", archive)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(studies(shared), autocommit=True) as database:
        database.execute("DROP TABLE kept")
    busy = shared.run("restore", archive)
    assert busy.returncode == 2
    assert "must be stopped first" in busy.stderr
    assert shared.stop() == 0
    back = shared.run("restore", archive)
    assert back.returncode == 0, back.stderr
    shared.start()
    with psycopg.connect(studies(shared)) as database:
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
    code, _, err = cli("serve", "--max-upload-gb", "0")
    assert code == 2
    assert "--max-upload-gb must be above 0, but got 0" in err


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
    assert f"{swept}/mlflow.db, {swept}/lzsweep.db is there; move it away" in err
    empty = tmp_path / "empty"
    empty.mkdir()
    os.chdir(empty)
    code, out, err = here("serve", "restore", archive)
    assert code == 0, err
    code, out, err = here("list")
    assert code == 0, err
    assert STUDY in out
    assert (empty / "mlflow.db").stat().st_size == (swept / "mlflow.db").stat().st_size

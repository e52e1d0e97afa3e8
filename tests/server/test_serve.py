"""`lzsweep serve` over the files of a sweep that knew no server."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import mlflow.server.constants as constants
import pytest
import requests
from mlflow import MlflowClient

from lzsweep.tracking.outbox import is_delivered
from lzsweep.tracking.server import SETTINGS
from tests.server.conftest import STUDY, Served, start_server
from tests.sweep.conftest import Cli

pytestmark = [pytest.mark.slow, pytest.mark.server]


def test_mlflow_reads_the_variables_that_we_set() -> None:
    assert SETTINGS == {
        "database": constants.BACKEND_STORE_URI_ENV_VAR,
        "registry": constants.REGISTRY_STORE_URI_ENV_VAR,
        "root": constants.ARTIFACT_ROOT_ENV_VAR,
        "artifacts": constants.ARTIFACTS_DESTINATION_ENV_VAR,
        "proxy": constants.SERVE_ARTIFACTS_ENV_VAR,
    }


def test_a_server_is_asked_by_its_port(
    server: Served, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.uri.rpartition(":")[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    code, out, err = cli("serve", "health", "--port", port)
    assert (code, out) == (0, f"{server.uri} answers\n"), err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert cli("serve", "health")[:2] == (0, f"{server.uri} answers\n")
    code, _, err = cli("serve", "health", server.uri, "--port", port)
    assert code == 2
    assert f"but got {server.uri} and --port {port}; leave one out" in err


def test_a_new_database_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    served = start_server("--database", "sqlite:///typo.db", folder=tmp_path, log=log)
    served.process.kill()
    served.process.wait()
    assert f"note: {tmp_path / 'typo.db'} is new and empty" in log.read_text()


def test_what_a_sweep_wrote_is_served(server: Served, cli: Cli) -> None:
    assert requests.get(f"{server.uri}/health", timeout=30).text == "OK"
    code, out, _ = cli("serve", "health", server.uri)
    assert (code, out) == (0, f"{server.uri} answers\n")
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("lzsweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags.get("lzsweep.kind") == "study"]
    assert parent.info.run_name == STUDY
    assert len(runs) == 5
    files = {f.path for f in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/index.html", "report/curves.png", "report/timeline.png"} <= files
    page = requests.get(
        f"{server.uri}/get-artifact",
        params={"run_id": parent.info.run_id, "path": "report/index.html"},
        timeout=30,
    )
    assert "Learning curves" in page.text


def test_the_assistant_that_runs_commands_is_off(server: Served) -> None:
    for path in ("config", "providers", "message"):
        answer = requests.get(f"{server.uri}/ajax-api/3.0/mlflow/assistant/{path}", timeout=30)
        assert answer.status_code == 403
        assert "it runs shell commands as whoever serves" in answer.json()["message"]


def test_a_report_is_drawn_again_and_goes_to_the_run(here: Cli, tmp_path: Path) -> None:
    folder = Path("multirun/late")
    drawn = (folder / "report/index.html").stat().st_mtime_ns
    code, out, err = here("report", STUDY)
    assert code == 0, err
    assert Path(out.strip()).stat().st_mtime_ns > drawn
    assert is_delivered(folder)
    assert "compare-runs?runs=" in Path(out.strip()).read_text()
    code, out, err = here("report", STUDY, "-o", str(tmp_path / "x"))
    assert code == 0, err
    assert (tmp_path / "x" / "timeline.png").exists()
    (tmp_path / "file").touch()
    code, _, err = here("report", STUDY, "-o", str(tmp_path / "file"))
    assert code == 2
    assert "must go to a writable folder" in err


def test_mistakes_are_one_line(server: Served, cli: Cli, work: Path) -> None:
    port = server.uri.rpartition(":")[2]
    code, _, err = cli("serve", "--port", port)
    assert code == 2
    assert f"127.0.0.1:{port} is in use" in err
    code, _, err = cli("serve", "--port", "0", "--host", "0.0.0.0")
    assert code == 2
    assert "without passwords only this machine may be served" in err
    with sqlite3.connect("other.db") as db:
        db.execute("CREATE TABLE studies (id INTEGER)")
    code, _, err = cli("serve", "--port", "0", "--database", "sqlite:///other.db")
    assert code == 2
    assert "other.db holds no experiments" in err
    Path("no.db").write_text("this is no database, but it is long enough to look at" * 20)
    code, _, err = cli("serve", "--port", "0", "--database", "sqlite:///no.db")
    assert code == 2
    assert "must be a SQLite file" in err


def test_a_folder_that_cannot_be_written_is_told(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    code, _, err = cli("serve", "--port", "0", "--artifacts", "file/up")
    assert code == 2
    assert f"must be one that can be written, but {work}/file/up: Not a directory" in err
    assert "or set --artifacts" in err
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # to root all is allowed
    code, _, err = cli("serve", "--port", "0")
    assert code == 2
    assert f"needs a folder that can be written, but {work} cannot" in err
    assert "or set --database" in err
    assert "hydra" not in err


def test_a_database_of_another_version_is_refused(swept: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(swept / "mlflow.db") as source, sqlite3.connect(other) as target:
        source.backup(target)
        target.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    with pytest.raises(AssertionError, match=r"must be of MLflow .* is of another version"):
        start_server("--database", f"sqlite:///{other}", folder=tmp_path, log=tmp_path / "log.txt")


def test_a_signal_stops_it_cleanly(swept: Path, tmp_path: Path) -> None:
    served = start_server(folder=swept, log=tmp_path / "log.txt")
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    text = served.log.read_text()
    assert text.endswith("stopped\n")
    assert "Traceback" not in text
    assert "Warning" not in text

"""The servers that the pages start, with the very words that they print."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
import requests

from benchmarks.shared import SharedServer, open_folder
from tests.docs.pages import commands_of
from tests.go.engine import PROJECT
from tests.server.conftest import start_server
from tests.server.test_tls import make_certificate
from tests.sweep.conftest import Cli, cli
from tests.tracking.conftest import empty_database

__all__ = ["cli", "empty_database"]

pytestmark = [pytest.mark.slow, pytest.mark.server]

COMMANDS = {c.text: list(c.words[1:]) for c in commands_of("server")}
HERE = [t for t, w in COMMANDS.items() if w[0] == "serve" and not {"health", "--shared"} & {*w}]
SHARED = [text for text, words in COMMANDS.items() if "--shared" in words]
"""Starts of a shared server, and what is done beside it."""
HEALTH = "lzsweep serve health"
EXPORT = "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000"
BACKUP = "lzsweep serve backup monday.tar --shared"
RESTORE = "lzsweep serve restore monday.tar --shared"


def test_here_is_no_command_that_nobody_types() -> None:
    assert set(COMMANDS) == {*HERE, *SHARED, HEALTH, EXPORT}
    assert (Path(sys.executable).parent / "lzsweep").is_file(), ".venv/bin/lzsweep is this program"


@pytest.mark.parametrize("text", [t for t in HERE if not t.startswith(".venv")])
def test_what_is_in_this_folder_is_served(
    text: str, cli: Cli, work: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, work / "mlflow.db")
    served = start_server(*COMMANDS[text][1:], "--port", "0", folder=work, log=work / "serve.log")
    try:
        name, _, address = EXPORT.removeprefix("export ").partition("=")
        assert f"export {name}=" in served.log.read_text()
        monkeypatch.setenv(name, served.uri)
        assert served.uri.rpartition(":")[0] == address.rpartition(":")[0]
        code, out, err = cli(*COMMANDS[HEALTH])
        assert (code, out) == (0, f"{served.uri} answers\n"), err
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0
    finally:
        served.process.kill()
        served.process.wait()


def test_a_group_is_served(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, with_tls = (COMMANDS[t] for t in sorted(SHARED, key=len) if "--host" in COMMANDS[t])
    rest = {t for t in SHARED if COMMANDS[t] not in (plain, with_tls, plain[:2])}
    assert rest == {BACKUP, RESTORE}
    with open_folder() as folder:
        server = SharedServer(folder, *plain[2:])
        try:
            server.start()
            with monkeypatch.context() as patch:
                for name, value in server.environment.items():
                    patch.setenv(name, value)
                patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
                code, _, err = cli(*COMMANDS[HEALTH])
                assert code == 0, err
            saved = server.run(*COMMANDS[BACKUP][1:])
            assert saved.returncode == 0, saved.stderr
            assert server.stop() == 0
            back = server.run(*COMMANDS[RESTORE][1:])
            assert back.returncode == 0, back.stderr
        finally:
            server.kill()
        check_over_tls(folder, server, with_tls)


def check_over_tls(folder: Path, before: SharedServer, words: list[str]) -> None:
    """The same server goes on with a certificate and under one name alone."""
    key, certificate = make_certificate(folder, "cert")
    key.rename(folder / "key.pem")
    server = SharedServer(folder, *words[2:])
    server.port, server.postgres_port = before.port, before.postgres_port
    try:
        server.start()
        name = words[words.index("--allowed-hosts") + 1]
        assert server.uri == f"https://{name}:{server.port}"
        assert "shown this once" not in server.log.read_text()
        here = f"https://127.0.0.1:{server.port}/api/2.0/mlflow/experiments/search?max_results=1"
        login = ("admin", server.secrets["admin"])
        for host, status in ((f"{name}:{server.port}", 200), ("evil.example", 403)):
            answer = requests.get(
                here, headers={"Host": host}, auth=login, verify=str(certificate), timeout=60
            )
            assert answer.status_code == status, answer.text
    finally:
        server.kill()


def test_the_program_of_the_environment_is_this_one() -> None:
    (text,) = (t for t in HERE if t.startswith(".venv"))
    assert text.removeprefix(".venv/bin/") in COMMANDS, "served by the test above"
    assert "\nBIN := .venv/bin\n" in (PROJECT / "Makefile").read_text()

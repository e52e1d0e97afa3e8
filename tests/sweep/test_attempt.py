"""The processes of a slot: one trains, the next one waits for its trial."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lzsweep.sweep import forkserver
from lzsweep.sweep.attempt import Attempt
from lzsweep.sweep.forkserver import await_forkserver, start_forkserver
from lzsweep.sweep.record import Trial
from lzsweep.sweep.study import Study
from tests.sweep.conftest import Cli, check_study
from tests.sweep.test_sweep import open_files, trial_processes, watching

pytestmark = pytest.mark.slow

RESTARTED = """
import multiprocessing, sys
from lzsweep.imports import COMPILER
from lzsweep.sweep import forkserver

def has_compiler():
    sys.exit(f"{COMPILER}.eval_frame" not in sys.modules)

if __name__ == "__main__":
    forkserver.start_forkserver()
    forkserver.start_forkserver(compiles=True)
    forkserver.await_forkserver()
    forkserver.end_unused_forkserver()
    process = multiprocessing.get_context("forkserver").Process(target=has_compiler)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


def test_a_forkserver_started_without_the_compiler_gives_way_to_one_with_it(
    tmp_path: Path,
) -> None:
    script = tmp_path / "restarted.py"
    script.write_text(RESTARTED)
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_a_process_that_is_killed_before_its_trial_is_there_costs_nothing(
    cli: Cli, work: Path
) -> None:
    killed: list[int] = []

    def kill_waiting(_: Study, trials: list[Trial]) -> None:
        if not killed and any(len(t.curve) > 1 for t in trials):  # it was forked by now
            for process in trial_processes():
                leads = os.getsid(process.pid) == process.pid  # as trials do
                if leads and str(work / "multirun") not in open_files(process):
                    process.kill()
                    killed.append(process.pid)

    with watching("w", kill_waiting):
        cli.sweep(
            "study.name=w", "network=tiny", "lr=0.01,0.02,0.05,0.1", "trainer.max_epochs=8",
            "hydra/sweeper/pruner=none",
        )  # fmt: skip
    assert killed
    trials = check_study(cli, work, "w", 4)["trials"]
    assert [t["attempt"] for t in trials] == [1, 1, 1, 1]


def test_a_process_that_no_kill_ends_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that waits in the kernel for a file system that is gone."""
    start_forkserver()
    await_forkserver()
    attempt, other = Attempt(), Attempt()
    monkeypatch.setattr(forkserver, "DEATH_S", 5.0)
    monkeypatch.setattr(attempt._process, "kill", lambda: None)
    monkeypatch.setattr("lzsweep.sweep.attempt.kill_session", lambda _: None)
    killing = threading.Thread(target=attempt.kill)
    killing.start()
    assert other.is_alive, "and its worker can ask"
    assert killing.is_alive()
    killing.join()
    assert "was killed but is there after" in caplog.text
    monkeypatch.undo()
    attempt.close()
    other.close()
    assert not attempt.is_alive

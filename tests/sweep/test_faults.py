"""Faults that strike a trial from within: how it ends, and that nothing else is touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from lzsweep.sweep import output, worker
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.walltime import Walltime
from tests.sweep.conftest import FAULTY, Cli, check_study, find_runs
from tests.sweep.fork import let_go_on
from tests.sweep.test_sweep import trials_of

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

ENDINGS = {
    "none": "",
    "error": "ValueError: a bad step (faulty.py:",
    "not_a_number": "an objective must be finite, but val/loss=nan",
    "out_of_memory": "out of memory: took ",
    "hang": "killed after worker.trial_timeout=6 s",
    "segfault": "the process crashed with SIGSEGV",
    "exit": "the process ended with exit code 0 and no result",
    "sigkill": "killed from outside by SIGKILL, 2 times; see study.max_retries",
    "chatter": "",
}


def test_each_fault_ends_its_own_trial_with_its_reason(cli: Cli, faulty: Path) -> None:
    code, out, err = cli(
        "-m", *FAULTY, "study.name=f", f"module.fault={','.join(ENDINGS)}",
        "worker.trial_timeout=6", "worker.trial_memory_gb=0.5", "study.max_same_errors=9",
        "study.max_retries=1",
    )  # fmt: skip
    assert code == 0, err
    status = check_study(cli, faulty, "f", len(ENDINGS))
    _, runs = find_runs(faulty)
    tags = {r.data.tags["lzsweep.trial"]: r.data.tags for r in runs}
    for trial, (fault, reason) in zip(status["trials"], ENDINGS.items(), strict=True):
        assert list(trial["params"].values()) == [fault]
        assert trial["state"] == ("failed" if reason else "complete"), (fault, trial["reason"])
        assert trial["reason"].startswith(reason)
        assert trial["attempt"] == (2 if fault == "sigkill" else 1), "only that is nobody's fault"
        mine = tags[str(trial["number"])]
        log = Path(trial["folder"]) / "trial.log"
        assert mine["lzsweep.reason"] == trial["reason"]
        assert mine["lzsweep.log"] == trial["log"] == str(log)
        assert mine["lzsweep.ending"] == trial["ending"]
        assert log.stat().st_size <= output.MAX_BYTES
        if reason:
            again = ", attempt 2" if fault == "sigkill" else ""
            assert (
                f"#{trial['number']} failed ({trial['ending']}{again}): {trial['reason']};"
                f" see {log.relative_to(faulty)}" in out
            )
    states = {
        t["params"]["module.fault"]: tags[str(t["number"])]["lzsweep.ending"]
        for t in status["trials"]
    }
    assert states.pop("not_a_number") == states.pop("out_of_memory") == "infeasible"
    assert states.pop("none") == states.pop("chatter") == "complete"
    assert set(states.values()) == {"error"}
    n = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"threads: {n} {n}\n" in (faulty / "multirun/f/0/trial.log").read_text()
    chatter = (faulty / "multirun/f/8/trial.log").read_text()
    assert "cut by lzsweep: this trial prints too much" in chatter
    running = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    assert not any("endless chatter" in " ".join(words) for words in running)
    assert "faulty.py" in (faulty / "multirun/f/5/trial.log").read_text(), "where it crashed"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own, with so little room, at a folder."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
def test_a_full_disk_fails_its_own_trial_whose_run_ends_once_there_is_room(
    cli: Cli, faulty: Path
) -> None:
    # A checkpoint of a million numbers and their momentum takes 8 MB.
    command = ("-m", *FAULTY, "study.name=d", "module.size=1000000", "lr=interval(0.1,0.2)")
    code, _, err = cli(*command, "study.n_trials=1")
    assert code == 0, err
    study = faulty / "multirun/d"
    with (
        small_disk(study / "1", "2M"),
        small_disk(study / "2", "24K"),
        small_disk(study / "3", "4K"),
    ):
        (study / "3/full").write_bytes(b"x" * 4096)
        code, out, err = cli(*command, "study.n_trials=6")
        assert code == 0, err
        journal = (study / "1/journal.jsonl").read_text()
        assert not list(study.glob("*/checkpoints/*.partial"))
        for number in (1, 2, 3):
            subprocess.run(["mount", "-o", "remount,size=16M", study / str(number)], check=True)
        code, again, err = cli(*command, "study.n_trials=6")
        assert code == 0, err
        assert "study d is complete" in again
        status = check_study(cli, faulty, "d", 6)
    assert [t["state"] for t in status["trials"]] == [
        "complete", "failed", "failed", "failed", "complete", "complete",
    ]  # fmt: skip
    for number, file in {1: "checkpoints/last.partial", 2: "", 3: ""}.items():
        reason = status["trials"][number]["reason"]
        assert reason.startswith("the disk is full: No space left on device (")
        assert f"{study}/{number}/{file}" in reason
        assert f"#{number} failed (error): {reason}" in out
    assert '"status":"FAILED"' in journal
    _, runs = find_runs(faulty)
    tags = {r.data.tags["lzsweep.trial"]: r.data.tags for r in runs}
    for number in (1, 2, 3):
        assert tags[str(number)]["lzsweep.reason"] == status["trials"][number]["reason"]


@pytest.mark.parametrize("slots", [1, 2])
def test_the_same_error_in_the_first_trials_stops_the_sweep(
    cli: Cli, faulty: Path, slots: int
) -> None:
    code, _, err = cli(
        "-m", *FAULTY, "study.name=e", "module.fault=error", "lr=interval(0.1,0.2)",
        "study.n_trials=20", f"worker.slots={slots}",
    )  # fmt: skip
    assert code == 1
    assert "study e was stopped: the same error 3 times running: ValueError: a bad step" in err
    assert "(faulty.py:" in err
    states = cli.status("e")["states"]
    assert 3 <= states["failed"] <= 2 + slots
    assert states["running"] == 0
    log = err.strip().rpartition("; see ")[2]
    assert "ValueError: a bad step" in Path(log).read_text()


def test_a_sampler_that_fails_ends_its_worker_and_no_trial(cli: Cli, faulty: Path) -> None:
    command = (
        "-m", *FAULTY, "study.name=s", "lr=interval(0.1,0.2)", "study.n_trials=3",
        "hydra/sweeper/sampler=random",
    )  # fmt: skip
    broken = "hydra.sweeper.sampler._target_=tests.sweep.faulty.BrokenSampler"
    code, _, err = cli(*command, broken)
    assert code == 1
    assert "ended: ArithmeticError: the matrix is singular (faulty.py:" in err
    assert cli.status("s")["states"]["running"] == 0
    parents, _ = find_runs(faulty)
    assert [p.info.status for p in parents] == ["KILLED"]
    code, _, err = cli(*command)
    assert code == 0, err
    check_study(cli, faulty, "s", 3)


def test_what_has_not_stopped_when_the_time_of_a_job_is_over_goes_back(
    cli: Cli, faulty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-m", *FAULTY, "study.name=w", "module.fault=wait", "module.at=2,6")
    with monkeypatch.context() as patch:
        patch.setattr(worker, "WATCH_S", 0.5)
        patch.setattr(Walltime, "is_over", lambda _: len(list(faulty.glob("waiting-*"))) == 2)
        code, _, err = cli(*command)
    assert code == 1
    assert "study w is not complete; the same command goes on with it" in err
    trials, reason = trials_of("w"), "the time of its job was over"
    assert [(t.state, t.attempt) for t in trials] == [("waiting", 2)] * 2
    assert [t.retries for t in trials] == [1, 0], "who got on is not to blame"
    attempts = open_study("sqlite:///lzsweep.db", "w").attempts()
    assert [a.reason for a in attempts if a.ending == "infrastructure"] == [reason] * 2
    let_go_on(faulty)
    code, _, err = cli(*command)
    assert code == 0, err
    check_study(cli, faulty, "w", 2)

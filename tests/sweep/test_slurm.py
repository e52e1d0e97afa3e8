"""Slurm's words, read right; the real Slurm is in tests/cluster."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lzsweep.commands import compose_sweep
from lzsweep.errors import LzsweepError, UserError
from lzsweep.sweep import probe
from lzsweep.sweep.probe import count_gpus, limit_problems, minutes
from lzsweep.sweep.slurm import Workers, is_passing, is_slurm, this_job, told


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed:"
         " Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
         True),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission"
         " failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time"
         " limits)", False),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller"
         " (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
         True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: invalid partition specified: x", False),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition"
         " combination specified", False),
    ],
)  # fmt: skip
def test_what_passes_is_told_from_what_does_not(text: str, passes: bool) -> None:
    assert is_passing(text) is passes


def test_what_slurm_says_becomes_one_line() -> None:
    text = "sbatch: error: a limit\nsbatch: error: Batch job submission failed: no\n"
    assert told(text) == "a limit; Batch job submission failed: no"


@pytest.mark.parametrize(
    ("gres", "n_gpus"),
    [
        ("gpu:4", 4), ("gpu:a100:4(S:0-1),shard:8", 4), ("gpu:a:2,gpu:b:3", 5), ("(null)", 0),
        ("gpu", 1), ("gpu:a100", 1), ("shard:2,gpu:2(IDX:0,1)", 2), ("", 0),
    ],
)  # fmt: skip
def test_gpus_of_a_node_are_counted(gres: str, n_gpus: int) -> None:
    assert count_gpus(gres) == n_gpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1-12:00:00", 2160), ("02:30:00", 150), ("30:00", 30), ("UNLIMITED", None)],
)
def test_time_limits_are_read(text: str, expected: int | None) -> None:
    assert minutes(text) == expected


def test_a_shell_on_a_node_is_no_worker_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    assert this_job() is None


def test_only_the_queue_is_slurm() -> None:
    assert is_slurm("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher")
    assert not is_slurm("hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs in the place of Slurm's: arrays of two, and of them `room` are taken."""
    partition = "PartitionName=normal Default=YES MaxTime=01:00:00"
    programs = {
        "scontrol": f'[ "$2" = config ] && echo "MaxArraySize = 2" || echo "{partition}"',
        "sinfo": 'echo "4|64000|gpu:a100:2(S:0)|"; echo "8|64000|(null)|"',
        "srun": "",
        "sbatch": 'cd "${0%/*}"; echo "$1" >asked; n=$(ls taken | wc -l)\n'
        '[ $n -lt $(cat room) ] && touch taken/$n && echo "Submitted batch job 10$n" && exit\n'
        'echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1',
    }
    (tmp_path / "bin/taken").mkdir(parents=True)
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bin"


def params_of(*overrides: str) -> dict[str, Any]:
    launcher = compose_sweep(overrides or ["hydra/launcher=slurm"]).hydra.launcher
    return {k: v for k, v in launcher.items() if k != "_target_"}


def test_arrays_are_told_as_they_are_taken(slurm: Path) -> None:
    workers = Workers(**params_of())
    (slurm / "room").write_text("2")
    ids = []
    with pytest.raises(UserError, match=r"must take the workers, but sbatch says: .*Invalid acc"):
        for job in workers.submit([["lr=1"]] * 5):
            ids.append(job)
    assert ids == ["100", "101"], "the third was refused for good"
    (slurm / "room").write_text("9")
    assert list(workers.submit([["lr=1"]] * 5)) == ["102", "103", "104"]


def test_the_script_of_each_array_is_shown(slurm: Path) -> None:
    scripts = list(Workers(**params_of()).scripts(5))
    arrays = [[w for w in s.splitlines() if w.startswith("#SBATCH --array")] for s in scripts]
    assert arrays == [["#SBATCH --array=0-1%2"]] * 2 + [[]]


@pytest.mark.parametrize("launcher", ["slurm", "submitit_slurm"])
def test_a_worker_is_requeued_whatever_launcher_file_is_chosen(slurm: Path, launcher: str) -> None:
    executor = Workers(**params_of(f"hydra/launcher={launcher}")).executor()
    assert executor._executor.max_num_timeout >= 1000


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["gpus_per_node=2"], None),
        (["gpus_per_node=3"], "hydra.launcher.gpus_per_node must fit .* has 2, but got 3"),
        (["gres=gpu:a100:4", "gpus_per_node=null"], "gres must fit .* has 2, but got 4"),
        (["gres=gpu:2", "gpus_per_node=null"], None),
        (["gres=shard:4"], None),
        (
            ["gpus_per_task=2", "tasks_per_node=2", "gpus_per_node=null"],
            "gpus_per_task x tasks_per_node must fit .* has 2, but got 4",
        ),
        (["gres=gpu:2"], "in one way, but got .*gpus_per_node for 1, hydra.launcher.gres for 2;"),
    ],
)
def test_no_more_gpus_are_asked_for_than_a_node_has(
    slurm: Path, asked: list[str], told: str | None
) -> None:
    short = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=60"]
    problems = limit_problems(params_of(*short, *(f"hydra.launcher.{word}" for word in asked)))
    assert len(problems) == (told is not None), problems
    assert all(re.search(told, problem) for problem in problems if told)


def test_the_probe_asks_in_the_folder_of_the_study(slurm: Path, tmp_path: Path) -> None:
    """Not in its parent: on many sites that is `/scratch`, which nobody may write."""
    cfg = compose_sweep(["hydra/launcher=slurm"])
    own = tmp_path / "scratch/me"
    own.mkdir(parents=True)
    (slurm / "room").write_text("0")
    for folder in (own, own / "new/study"):
        with pytest.raises(LzsweepError, match=r"a probe must run first, but: .*Invalid account"):
            probe.probe(cfg, folder)
        script = Path((slurm / "asked").read_text().strip())
        assert script.is_relative_to(own)
        assert script.relative_to(own).parts[0].startswith(".probe-")
        assert list(own.iterdir()) == []
    (problem,) = probe.probe(cfg, Path("/proc/scratch/me"))
    assert problem.startswith("the study's folder must be writable, but /proc is not: ")


class Probed:
    """A probe's job whose result another machine writes."""

    job_id = "7"

    def __init__(self, folder: Path) -> None:
        self.paths = SimpleNamespace(result_pickle=folder / "result", stdout=folder / "out")

    def result(self) -> list[str]:
        return [self.paths.result_pickle.read_text()]


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """States that the queue tells of the probe, one a question."""
    told: list[str | None] = []

    def queue(ids: list[str]) -> dict[str, str]:
        state = told.pop(0)
        return {} if state is None else dict.fromkeys(ids, state)

    monkeypatch.setattr(probe, "queue", queue)
    for name, value in {"LOOK_S": 0.01, "QUERY_S": 0.05, "SHOWN_S": 0.2}.items():
        monkeypatch.setattr(probe, name, value)
    return told


def test_what_the_probe_wrote_may_be_seen_late(
    tmp_path: Path, states: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network filesystem shows it when the job has left the queue already."""
    monkeypatch.setattr(probe, "SHOWN_S", 30.0)
    states += ["PENDING", "RUNNING", None]

    def show() -> None:
        while states:
            time.sleep(0.01)
        (tmp_path / "result").write_text("a problem")
        (tmp_path / "mark").touch()

    late = threading.Thread(target=show)
    late.start()
    assert probe._await(Probed(tmp_path), tmp_path / "mark") == ["a problem"]
    late.join()


def test_a_probe_that_leaves_nothing_is_told(tmp_path: Path, states: list[str | None]) -> None:
    states += ["RUNNING", None]
    (tmp_path / "out").write_text("Traceback\nno such file\n")
    (problem,) = probe._await(Probed(tmp_path), tmp_path / "mark")
    assert "probe 7 left no result in" in problem
    assert "no such file" in problem
    (tmp_path / "result").write_text("a problem")
    problems = probe._await(Probed(tmp_path), tmp_path / "mark")
    assert problems[0] == "a problem"
    assert "the folder must be shared with the compute nodes" in problems[1]

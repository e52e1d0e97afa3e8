"""Slurm's words, read right; the real Slurm is in tests/cluster."""

from __future__ import annotations

import pytest

from lzsweep.sweep.probe import count_gpus, minutes
from lzsweep.sweep.slurm import is_passing, is_slurm, this_job, told


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
    [("gpu:4", 4), ("gpu:a100:4(S:0-1),shard:8", 4), ("gpu:a:2,gpu:b:3", 5), ("(null)", 0)],
)
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

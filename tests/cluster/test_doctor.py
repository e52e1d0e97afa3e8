"""What is wrong with a cluster is told before anything is submitted."""

from __future__ import annotations

import json

from tests.cluster.conftest import LAUNCHER, QUICK, Lab


def test_the_doctor_asks_from_a_compute_node(lab: Lab) -> None:
    command = (
        "doctor", "--format", "json", "hydra/launcher=slurm", "hydra.launcher.mem_gb=1",
        "hydra.launcher.cpus_per_task=1",
    )  # fmt: skip
    well, ill = lab.shell(*command), lab.shell(*command, "tracking.uri=http://127.0.0.1:1")
    done = well.done(300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {f["check"]: f for f in json.loads(done.stdout)}
    assert list(found) == [
        "GPU", "torch", "disk", "study database", "MLflow", "cluster", "compute node",
    ]  # fmt: skip
    assert all(f["ok"] for f in found.values())
    assert lab.uri in found["MLflow"]["text"]
    done = ill.done(300)
    assert not list(lab.folder.glob(".probe*"))
    assert done.returncode == 1
    found = {f["check"]: f for f in json.loads(done.stdout)}
    assert not found["MLflow"]["ok"]
    assert "from compute node" in found["compute node"]["text"]
    assert "http://127.0.0.1:1" in found["compute node"]["text"]


def test_what_the_cluster_has_not_is_told_at_once(lab: Lab) -> None:
    done = lab.lzsweep(
        "submit", *QUICK, *LAUNCHER, "lr=0.02", "hydra.launcher.partition=urgent",
        "hydra.launcher.timeout_min=90", "hydra.launcher.gpus_per_node=3",
        "hydra.launcher.gres=gpu:4", "hydra.launcher.cpus_per_task=9", "hydra.launcher.mem_gb=64",
    )  # fmt: skip
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    assert "GPUs must be asked for in one way" in lines[0]
    assert "timeout_min must not exceed the 60 min of partition urgent, but got 90" in lines[1]
    assert "gpus_per_node must fit a node of partition urgent, whose largest has 2" in lines[2]
    assert "gres must fit a node of partition urgent, whose largest has 2, but got 4" in lines[3]
    assert "cpus_per_task must fit" in lines[4]
    assert "mem_gb must fit" in lines[5]
    done = lab.lzsweep("submit", *QUICK, *LAUNCHER, "lr=0.02", "hydra.launcher.partition=big")
    assert done.returncode == 2
    assert "there are normal, gpu, urgent" in done.stderr
    assert lab.cluster.jobs() == {}
    assert not (lab.folder / "multirun").exists()


def test_only_a_cluster_takes_a_submission(lab: Lab) -> None:
    done = lab.lzsweep("submit", *QUICK, "hydra/launcher=local", "lr=0.02")
    assert done.returncode == 2
    assert "only a Slurm cluster takes workers to go on alone, but hydra/launcher=local" in (
        done.stderr
    )

"""Sweeps on a real Slurm: every trial its GPU, both nodes at work, nobody waits for a shell."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter

from mlflow import MlflowClient

from tests.cluster.conftest import LAUNCHER, QUICK, Lab


def test_three_workers_on_both_nodes_each_with_its_own_gpu(lab: Lab) -> None:
    pair = start_pair(lab)
    done = lab.lzsweep(
        "-m", *QUICK, *LAUNCHER, "study.name=a", "lr=interval(0.01,0.1)", "study.n_trials=8",
        "worker.count=3", "trainer.max_epochs=2", "callbacks.spy.pause_s=0.5", "worker.probe=true",
        timeout_s=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + lab.said("a")
    probes = ("sacct", "--noheader", "--parsable2", "--allocations", "--name=lzsweep-probe")
    folders = lab.cluster.run(*probes, "--starttime=now-1hour", "--format=WorkDir").splitlines()
    assert folders.count(str(lab.folder)) == 1, "it was asked from a compute node first"
    assert not list(lab.folder.rglob(".probe*"))
    assert "8 of 8 trials finished (8 complete)" in done.stdout
    lab.check("a", 8, n_epochs=2)
    seen = lab.seen("a")
    assert len(seen) == 8
    assert {s["node"] for s in seen} == {"n1", "n2"}
    places = {s["job"]: (s["node"], s["device"]) for s in seen}
    assert len(set(places.values())) == len(places) == 3, "no GPU was shared"
    assert all((s["node"], s["device"]) == places[s["job"]] for s in seen)
    assert {device for _, device in places.values()} <= {"0", "1"}
    check_pair(lab, pair)


def start_pair(lab: Lab) -> str:
    """A single training by two tasks of a job, as typed into a job script; the job's id."""
    training = ("trainer.devices=2", "trainer.max_epochs=2", f"tracking.uri={lab.uri}")
    command = (sys.executable, "-m", "lzsweep", *QUICK, *training)
    # The names of these nodes are no addresses.
    return lab.cluster.run(
        "sbatch", "--parsable", "--ntasks-per-node=2", "--nodes=1", "--output=out",
        f"--wrap=export MASTER_ADDR=127.0.0.1; srun {shlex.join(command)}",
    ).strip()  # fmt: skip


def check_pair(lab: Lab, job: str) -> None:
    """The two tasks were one training and are one run."""
    lab.until(lambda: job not in lab.cluster.jobs(), "it is trained")
    out = (lab.folder / "out").read_text()
    assert out.count("\nrun ") == 1, out
    client = MlflowClient(lab.uri)
    run = client.get_run(out.partition("\nrun ")[2].split()[0])
    assert run.info.status == "FINISHED"
    assert run.data.tags["lzsweep.slurm.job_id"] == job
    steps = Counter(m.step for m in client.get_metric_history(run.info.run_id, "val/loss"))
    assert steps == {4: 1, 8: 1}
    files = (lab.folder / "outputs").rglob("seen.jsonl")
    seen = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(s["rank"] for s in seen) == [0, 1]

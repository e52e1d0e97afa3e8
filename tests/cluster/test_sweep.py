"""Sweeps on a real Slurm: every trial its GPU, both nodes at work, nobody waits for a shell."""

from __future__ import annotations

from tests.cluster.conftest import LAUNCHER, QUICK, Lab


def test_three_workers_on_both_nodes_each_with_its_own_gpu(lab: Lab) -> None:
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

"""`lzsweep submit`, `stop` and `resume`: from shells that do not stay."""

from __future__ import annotations

import shlex
import subprocess

from tests.cluster.conftest import LAUNCHER, QUICK, Lab, check_resumed
from tests.go.engine import PROJECT


def test_a_sweep_outlives_its_shell_and_keeps_its_config(lab: Lab) -> None:
    cluster = lab.cluster
    foreign = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 900").strip()
    cluster.run("scontrol", "update", "partitionname=normal", "state=down")
    # Each trial is two processes with a GPU each.
    shell = lab.shell(
        "submit", *QUICK, *LAUNCHER, "study.name=s", "lr=0.02,0.05", "trainer.max_epochs=12",
        "callbacks.spy.pause_s=0.3", "trainer.devices=2", "hydra.launcher.gpus_per_node=2",
    )  # fmt: skip
    done = shell.done()  # and its shell is killed
    assert done.returncode == 0, done.stderr
    out = done.stdout
    for text in ("submitted 1 workers of s: job ", "lzsweep watch s", "lzsweep stop s", lab.uri):
        assert text in out
    job = out.split("job ")[1].split(";")[0]
    assert set(cluster.jobs()) == {foreign, job}
    # What is edited while the job waits changes nothing.
    spy = lab.folder / "conf/callbacks/spy.yaml"
    before = spy.read_text()
    spy.write_text("spy: {broken")
    (lab.folder / "conf/network").mkdir()
    (lab.folder / "conf/network/tiny.yaml").write_text("blocks: 99")
    cluster.run("scontrol", "update", "partitionname=normal", "state=up")
    study = lab.study("s")
    lab.until(lambda: any(len(t.curve) > 2 for t in study.trials()), "it trains")
    stopped = lab.lzsweep("stop", "s")
    assert stopped.returncode == 0, stopped.stderr
    assert f"what waits of job {job} was cancelled" in stopped.stdout
    lab.until(lambda: set(cluster.jobs()) == {foreign}, "its job ends, and no other")
    states = {t.state for t in study.trials()}
    assert "waiting" in states, "the trial went back"
    assert "running" not in states
    spy.write_text(before)
    (lab.folder / "conf/network/tiny.yaml").unlink()
    resumed = lab.lzsweep("resume", "s")
    assert resumed.returncode == 0, resumed.stderr
    # On the other node meanwhile: one worker with a slot for each of its GPUs.
    lab.submit(
        "study.name=w", "lr=0.02,0.05", "trainer.max_epochs=2", "callbacks.spy.pause_s=0.5",
        "hydra.launcher.gpus_per_node=2", "worker.slots=auto",
    )  # fmt: skip
    cluster.run("scancel", foreign)
    lab.hurry("s")
    lab.until_done("s")
    lab.check("s", 2, n_epochs=12)
    assert {s["device"] for s in lab.seen("s")} == {"0,1"}
    for folder in (lab.folder / "multirun/s").glob("[0-9]*"):
        check_resumed(folder, n_ranks=2)
    assert (lab.folder / "multirun/s/report/index.html").exists()
    assert "blocks: 2" in (lab.folder / "multirun/s/0/config.yaml").read_text()
    lab.until_done("w")
    lab.check("w", 2, n_epochs=2)
    assert len(lab.study("w").jobs()) == 1
    assert sorted(s["device"] for s in lab.seen("w")) == ["0", "1"]


def test_what_the_limits_refuse_is_tried_again(lab: Lab) -> None:
    cluster = lab.cluster
    held = [
        cluster.run(
            "sbatch", "--parsable", "--qos=narrow", "--hold", "--output=/dev/null", "--wrap=true"
        ).strip()
        for _ in range(3)
    ]  # fmt: skip
    shell = lab.shell(
        "submit", *QUICK, *LAUNCHER, "study.name=q", "lr=0.02", "worker.count=21",
        "hydra.launcher.qos=narrow", "+hydra.launcher.additional_parameters.hold=true",
    )  # fmt: skip
    lab.until(lambda: "Slurm does not take the workers yet" in shell.said(), "it is refused")
    assert "MaxSubmit" in shell.said()
    (array,) = lab.study("q").jobs()  # of as many as an array may have here; noted already
    cluster.run("scancel", *held)
    done = shell.done(300)
    assert done.returncode == 0, done.stderr
    first, last = lab.study("q").jobs()
    assert first == array
    assert f"submitted 21 workers of q: job {first}, {last};" in done.stdout
    assert set(cluster.jobs()) == {*(f"{first}_{n}" for n in range(20)), last}
    assert lab.lzsweep("stop", "q").returncode == 0
    assert cluster.jobs() == {}


def test_what_slurm_refuses_for_good_is_told_at_once(lab: Lab) -> None:
    done = lab.lzsweep(
        "submit", *QUICK, *LAUNCHER, "study.name=r", "lr=0.02", "hydra.launcher.account=nobody",
        "worker.count=2",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Slurm must take the workers, but sbatch says:" in done.stderr
    assert "nvalid account" in done.stderr
    assert len(done.stderr.splitlines()) == 2, "what sbatch says, and what we make of it"


def test_the_script_is_shown_and_nothing_submitted(lab: Lab) -> None:
    done = lab.lzsweep(
        "submit", "--dry-run", *QUICK, *LAUNCHER, "lr=0.02", "worker.count=50",
        "hydra.launcher.setup=[module load cuda]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    arrays = [w for w in done.stdout.splitlines() if w.startswith("#SBATCH --array=")]
    assert [a.partition("=")[2] for a in arrays] == ["0-19%20", "0-19%20", "0-9%10"]
    assert "#SBATCH --gpus-per-node=1" in done.stdout
    assert "\nmodule load cuda\n" in done.stdout
    assert lab.cluster.jobs() == {}
    assert not (lab.folder / "multirun").exists()


def test_make_submits_a_ready_made_sweep(lab: Lab) -> None:
    make = ("make", "--no-print-directory", "-C", str(PROJECT), "--old-file=install", "submit")
    told = subprocess.run(make, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "say which sweep of sweeps/: make submit SWEEP=cluster" in told.stdout
    told = subprocess.run(
        [*make, "-n", "SWEEP=cluster"], capture_output=True, text=True, check=True
    )
    program, *words = shlex.split(told.stdout.splitlines()[-1])
    assert program.endswith("bin/lzsweep")
    done = lab.lzsweep(*words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-7%8" in done.stdout

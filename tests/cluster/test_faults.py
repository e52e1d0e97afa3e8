"""What ends a job on a cluster never ends its trial: every fault that Slurm knows, for real."""

from __future__ import annotations

from tests.cluster.conftest import Lab, check_resumed, read_seen

N_EPOCHS = 20


def test_whatever_ends_a_job_its_trial_goes_on(lab: Lab) -> None:
    cluster = lab.cluster
    # Its time is over while it trains; it has no GPU, so that nobody preempts it for one.
    lab.submit(
        "study.name=t", "lr=0.02", "worker.slots=1", "hydra.launcher.gpus_per_node=null",
        "hydra.launcher.timeout_min=3", "hydra.launcher.signal_delay_s=60",
        "+hydra.launcher.additional_parameters.nodelist=n1", f"trainer.max_epochs={N_EPOCHS}",
        "callbacks.spy.pause_s=2",
    )  # fmt: skip
    # Two GPUs for one slot, so that each worker has a node of its own.
    out = lab.submit(
        "study.name=f", "lr=0.02,0.05", "worker.count=2", "worker.slots=1",
        "hydra.launcher.gpus_per_node=2", f"trainer.max_epochs={N_EPOCHS}",
        "callbacks.spy.pause_s=0.5",
    )  # fmt: skip
    job = out.split("job ")[1].split(";")[0]
    until_busy(lab, "f", f"{job}_0", f"{job}_1")
    n_begun = len(lab.seen("f"))
    cluster.run("scontrol", "requeue", f"{job}_0")
    cluster.run("scancel", "--signal=USR2", f"{job}_1")
    lab.until(lambda: len(lab.seen("f")) >= n_begun + 2, "both go on")
    cluster.restart_controller()
    until_busy(lab, "f", f"{job}_0", f"{job}_1")
    preempt(lab, job, "n1")
    cluster.lose_node("n2")
    lab.until(lambda: all(t.attempt > 2 for t in lab.study("f").trials()), "both are retried")
    cluster.revive_node("n2")
    until_busy(lab, "f", f"{job}_0", f"{job}_1")
    other, left = (cluster.jobs()[f"{job}_{n}"][1] for n in range(2))
    workers = {t.number: str(t.worker) for t in lab.study("f").trials()}
    (moved,) = [n for n, worker in workers.items() if worker.startswith(f"{left}:")]
    cluster.run("scancel", f"{job}_1")
    lab.until(lambda: f"{job}_1" not in cluster.jobs(), "it is gone; the other takes its trial")
    lab.hurry("f")
    lab.until_done("f")
    lab.check("f", 2, N_EPOCHS)
    nodes = [seen["node"] for seen in read_seen(lab.folder / f"multirun/f/{moved}")]
    assert nodes[-2:] == [left, other], "its trial goes on elsewhere"
    lab.until(lambda: len(lab.seen("t")) > 1, "its time is over and it goes on")
    lab.hurry("t")
    lab.until_done("t")
    (trial,) = lab.check("t", 1, N_EPOCHS)
    assert trial.attempt > 1
    assert "this job is timed-out" in lab.said("t")
    for name in ("f", "t"):
        for folder in (lab.folder / "multirun" / name).glob("[0-9]*"):
            check_resumed(folder)


def preempt(lab: Lab, job: str, node: str) -> None:
    """Have a job of higher priority take a node from a task of this job."""
    cluster = lab.cluster
    on = {node: task for task, (_, node) in cluster.jobs().items() if task.startswith(f"{job}_")}
    cluster.run(
        "sbatch", "--partition=urgent", f"--nodelist={node}", "--gres=gpu:2", "--time=1",
        "--output=/dev/null", "--wrap=sleep 1",
    )  # fmt: skip
    lab.until(lambda: cluster.jobs()[on[node]][0] != "RUNNING", "it is preempted")


def until_busy(lab: Lab, name: str, *tasks: str) -> None:
    """Wait until each of these jobs trains a trial and has got on with it."""
    study = lab.study(name)
    before = {t.number: len(t.curve) for t in study.trials()}

    def busy() -> bool:
        nodes = {lab.cluster.jobs().get(task, ("", ""))[1] for task in tasks}
        at_work = {
            str(t.worker).partition(":")[0]
            for t in study.trials()
            if t.state == "running" and len(t.curve) > before.get(t.number, 0)
        }
        return nodes <= at_work

    lab.until(busy, f"{tasks} train")

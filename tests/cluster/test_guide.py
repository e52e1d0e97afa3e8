"""What the guide to clusters prints is typed on a real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cluster.conftest import QUICK, Lab
from tests.docs.pages import Command, commands_of, read_page
from tests.go.engine import PROJECT

PARTITIONS = ("normal", "gpu")
SHORT = ("hydra.launcher.timeout_min=30", "worker.probe=false", *QUICK)
SMALL_JOB = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null")
"""What is typed behind the words of the page: a node here has four CPUs and no other program."""


@pytest.fixture
def site(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab of the guide: its environment and its launcher's file; the account is there."""
    home = lab.folder / "home"
    (home / "venv/bin").mkdir(parents=True)
    programs = Path(sys.executable).parent
    (home / "venv/bin/activate").write_text(f"export PATH={programs}:$PATH\n")
    monkeypatch.setenv("HOME", str(home))
    for name, body in read_page(PROJECT / "docs/cluster.md").files.items():
        (lab.folder / name).parent.mkdir(parents=True)
        (lab.folder / name).write_text(body)
    return lab


def down(lab: Lab, state: str) -> None:
    for name in PARTITIONS:
        lab.cluster.run("scontrol", "update", f"partitionname={name}", f"state={state}")


def typed(lab: Lab, command: Command, *more: str) -> str:
    done = lab.lzsweep(*command.words[1:], *more, timeout_s=300)
    assert done.returncode == 0, f"{command.text}: {done.stderr}"
    return done.stdout


def test_the_guides_commands(site: Lab) -> None:
    """In the order of the pages; jobs wait in a queue that is down until one is to train."""
    commands = list(dict.fromkeys((c.text, c) for c in commands_of("cluster")))
    left = {text: c for text, c in commands if c.words[0] == "lzsweep"}
    check_doctors(site, [left.pop(t) for t in list(left) if " doctor " in t])
    down(site, "down")
    try:
        check_dry_runs(site, [left.pop(t) for t in list(left) if " --dry-run " in t])
        one = left.pop("lzsweep -m sweeps=demo hydra/launcher=slurm worker.count=8")
        for text in [t for t in left if " submit " in t]:
            if "study.name=first" not in text:
                check_waits(site, left.pop(text))
        check_stays(site, one)
        follow(site, left)
        assert not left
    finally:
        down(site, "up")


def check_doctors(lab: Lab, commands: list[Command]) -> None:
    assert len(commands) == 2
    for command in commands:
        assert "compute node" in typed(lab, command, *SMALL_JOB)


def check_dry_runs(lab: Lab, commands: list[Command]) -> None:
    assert len(commands) == 2
    for command in commands:
        out = typed(lab, command)
        assert "#SBATCH --array=0-7%8" in out
        if "hydra/launcher=mine" in command.words:
            for line in (
                "#SBATCH --partition=gpu",
                "#SBATCH --account=lab",
                "#SBATCH --comment=lzsweep",
                "#SBATCH --time=720",
                "source ~/venv/bin/activate",
            ):
                assert line in out.splitlines()
    assert lab.cluster.jobs() == {}


def check_waits(lab: Lab, command: Command) -> None:
    """Its jobs lie in the queue, and `stop` takes them out."""
    own = () if "hydra/launcher=mine" in command.words else SMALL_JOB
    out = typed(lab, command, *SHORT, *own)
    jobs = out.split("job ")[1].split(";")[0].split(", ")
    n = 8 if "cluster" in command.text else 1
    assert f"submitted {n} workers of" in out
    assert len([t for t in lab.cluster.jobs() if t.partition("_")[0] in jobs]) == n
    stopped = lab.lzsweep("stop", out.split("lzsweep stop ")[1].split(";")[0])
    assert stopped.returncode == 0, stopped.stderr
    assert lab.cluster.jobs() == {}


def check_stays(lab: Lab, command: Command) -> None:
    """`lzsweep -m` puts eight workers into the queue and shows how it goes."""
    shell = lab.shell(*command.words[1:], *SHORT, *SMALL_JOB, "study.name=stays")
    lab.until(lambda: len(lab.cluster.jobs()) == 8, "its workers are in the queue")
    assert lab.lzsweep("stop", "stays").returncode == 0
    lab.until(lambda: not lab.cluster.jobs(), "they are out of it")
    assert shell.done(300).returncode == 1, "stopped before its end"


def follow(lab: Lab, left: dict[str, Command]) -> None:
    """The study `first`: submitted, watched, stopped, gone on with, trained by one worker."""
    begin = left.pop(next(t for t in left if "study.name=first" in t))
    assert "submitted 8 workers of first" in typed(lab, begin, *SHORT, "study.n_trials=1")
    assert "1 trials wanted" in typed(lab, left.pop("lzsweep status first"))
    assert "was cancelled" in typed(lab, left.pop("lzsweep stop first"))
    typed(lab, left.pop("lzsweep resume first"), "worker.count=1")
    watching = lab.shell(*left.pop("lzsweep watch first").words[1:])
    down(lab, "up")
    lab.until_done("first")
    assert watching.done(120).returncode == 0
    lab.check("first", 1, n_epochs=4)
    one = left.pop("lzsweep status STUDY --trial N")
    names = {"STUDY": "first", "N": "0"}
    done = lab.lzsweep(*(names.get(w, w) for w in one.words[1:]))
    assert done.returncode == 0, done.stderr
    assert "the end of " in done.stdout


def test_what_is_exported_is_what_is_set(lab: Lab) -> None:
    words = [c.words[1] for c in commands_of("cluster") if c.words[0] == "export"]
    exported = dict(word.split("=") for word in words)
    own = {"LZSWEEP_STORAGE": lab.storage, "MLFLOW_TRACKING_URI": lab.uri}
    schemes = [{k: v.partition("://")[0] for k, v in each.items()} for each in (exported, own)]
    assert schemes[0] == schemes[1]


def test_a_training_by_several_devices_of_a_job(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one task and by one a device; a node here has two GPUs where the guide's has four."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{lab.cluster.env['PATH']}")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the names of these nodes are no addresses
    for name in ("PATH", "MASTER_ADDR"):
        monkeypatch.setitem(lab.cluster.env, name, os.environ[name])
    more = shlex.join([*QUICK, "trainer.max_epochs=2", f"tracking.uri={lab.uri}"])
    jobs = {}
    for n, text in enumerate(c.text for c in commands_of("cluster") if c.words[0] == "sbatch"):
        program, *words, wrapped = shlex.split(text.replace("=4", "=2"))
        folder = f"hydra.run.dir=outputs/{n}"
        options = ("--parsable", f"--output=out-{n}")
        command = (program, *options, *words, f"{wrapped} {more} {folder}")
        jobs[n] = lab.cluster.run(*command).strip()
    assert len(jobs) == 2
    for n, job in jobs.items():
        lab.until(lambda job=job: job not in lab.cluster.jobs(), "it is trained")  # type: ignore[misc]
        check_pair(lab, job, n)


def check_pair(lab: Lab, job: str, n: int) -> None:
    """The two processes were one training and are one run."""
    out = (lab.folder / f"out-{n}").read_text()
    runs = re.findall(r"run (\w{32}) at ", out)  # srun may put it behind the other's last words
    assert len(runs) == 1, out
    client = MlflowClient(lab.uri)
    run = client.get_run(runs[0])
    assert run.info.status == "FINISHED"
    assert run.data.tags["lzsweep.slurm.job_id"] == job
    steps = Counter(m.step for m in client.get_metric_history(run.info.run_id, "val/loss"))
    assert steps == {4: 1, 8: 1}
    files = (lab.folder / f"outputs/{n}").rglob("seen.jsonl")
    seen = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(s["rank"] for s in seen) == [0, 1]

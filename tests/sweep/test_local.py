"""The same sweep by other launchers: nothing in the engine is Slurm's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.conftest import FAULTY, Cli, check_study, find_runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_workers_as_processes_of_this_machine(cli: Cli, work: Path, launcher: str) -> None:
    out = cli.sweep(
        "study.name=p", f"hydra/launcher={launcher}", "network=tiny", "lr=0.01,0.02,0.05",
        "worker.count=2", "hydra/sweeper/pruner=none",
    )  # fmt: skip
    assert "p: 3 of 3 trials finished (3 complete)" in out
    check_study(cli, work, "p", 3)
    assert len(list((work / "multirun/p/workers").iterdir())) == 2
    if launcher == "joblib":
        return
    logs = list((work / "multirun/p/.submitit").rglob("*.out"))
    assert any("Job completed successfully" in log.read_text() for log in logs)


def test_a_launcher_that_starts_nobody_is_an_error(cli: Cli, faulty: Path) -> None:
    code, _, err = cli(
        "-m", *FAULTY, "study.name=n", "lr=0.1,0.2", "hydra/launcher=local",
        "hydra.launcher.nodes=2",
    )  # fmt: skip
    assert code == 1
    assert "no trial began: LocalExecutor can use only one node. Use nodes=1; correct" in err
    parents, _ = find_runs(faulty)
    assert [p.info.status for p in parents] == ["KILLED"]

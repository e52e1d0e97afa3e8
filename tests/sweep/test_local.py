"""The same sweep by other launchers: nothing in the engine is Slurm's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.conftest import FAULTY, Cli, check_study, find_runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_workers_as_processes_of_this_machine(
    cli: Cli, faulty: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    code, out, err = cli(
        "-m", *FAULTY, "study.name=p", f"hydra/launcher={launcher}", "lr=0.1,0.2,0.3",
        "worker.count=2",
    )  # fmt: skip
    assert code == 0, err
    assert "p: 3 of 3 trials finished (3 complete)" in out
    check_study(cli, faulty, "p", 3)
    assert len(list((faulty / "multirun/p/workers").iterdir())) == 2
    if launcher == "joblib":
        return
    logs = list((faulty / "multirun/p/.submitit").rglob("*.out"))
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

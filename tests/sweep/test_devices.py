"""Trials on several devices: a process each, one trial all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.conftest import FAULTY, Cli, find_runs
from tests.sweep.test_sweep import trials_of

pytestmark = pytest.mark.slow

TWO = ("-m", *FAULTY, "trainer.devices=2", "study.name=d")


def test_they_end_as_any_other(cli: Cli, faulty: Path) -> None:
    code, out, err = cli(*TWO, "module.fault=none,not_a_number,error")
    assert code == 0, err
    assert "3 of 3 trials finished (1 complete, 2 failed)" in out
    ends = {t.params["module.fault"]: t for t in trials_of("d")}
    assert ends["none"].ending == "complete"
    assert sorted(ends["none"].curve) == [1, 2, 3]
    assert ends["not_a_number"].ending == "infeasible"
    assert ends["error"].ending == "error"
    assert "a bad step" in ends["error"].reason
    _, runs = find_runs(faulty)
    assert len(runs) == 3


def test_what_one_device_hears_all_do(cli: Cli, faulty: Path) -> None:
    code, _, err = cli(
        *TWO, "lr=0.1,0.2", "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=-1",
        "study.resource=seconds", "study.rung=0.001",
    )  # fmt: skip
    assert code == 1
    assert "no trial of study d completed" in err
    assert [t.state for t in trials_of("d")] == ["pruned", "pruned"]
    logs = [(faulty / f"multirun/d/{n}/trial.log").read_text() for n in range(2)]
    assert not any("Traceback" in log for log in logs)

"""Where a sweep keeps its databases, as they are typed and as its jobs find them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.sweep.conftest import FAULTY, Cli, find_runs


@pytest.mark.slow
def test_the_trials_log_to_the_file_of_their_study(
    cli: Cli, faulty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = faulty / "home"
    home.mkdir()
    shutil.move("mlflow.db", home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/mlflow.db")
    code, _, err = cli("-m", *FAULTY, "study.name=h", "lr=0.1,0.2")
    assert code == 0, err
    parents, runs = find_runs(home)
    assert (len(parents), len(runs)) == (1, 2)
    assert not (faulty / "~").exists()

"""Where a sweep keeps its databases, as they are typed and as its jobs find them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lzsweep.errors import UserError
from lzsweep.sweep.storage import absolute_url, is_there
from lzsweep.tracking.client import resolve_uri
from tests.sweep.conftest import FAULTY, Cli, find_runs
from tests.sweep.test_study import make_study


def test_a_url_keeps_its_options_and_its_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute_url("sqlite:///~/x.db?timeout=3") == "sqlite:////home/me/x.db?timeout=3"
    assert resolve_uri("sqlite:///~/x.db?timeout=3") == "sqlite:////home/me/x.db?timeout=3"
    with pytest.raises(UserError, match="a file, which its workers share"):
        absolute_url("sqlite:///:memory:")


def test_a_database_with_options_opens(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db?timeout=30"
    assert not is_there(url)
    make_study(url)
    assert is_there(url)
    assert [p.name for p in tmp_path.glob("*.db")] == ["x.db"]


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

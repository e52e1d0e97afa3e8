"""What is refused before a sweep begins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution

from lzsweep.sweep.checks import _database_problems, _teacher_problems
from lzsweep.sweep.space import Parameter, Space
from tests.sweep.test_study import make_study

OBJECTIVE = {"metric": "val/loss", "direction": "minimize"}
KIND = Parameter("kind", CategoricalDistribution(["a", "b"]), "a,b")
FREE = Parameter("x", FloatDistribution(0.0, 0.5), "", is_interval=True)
OWNED = Parameter("x", FloatDistribution(0.0, 0.5), "", owner=("kind", "a"), is_interval=True)


@pytest.mark.parametrize(
    ("sampler", "x", "why"),
    [
        ("CmaEsSampler", OWNED, "learns only where all is always searched, and x@kind=a is not"),
        ("CmaEsSampler", FREE, None),
        ("TPESampler", OWNED, None),
        ("QMCSampler", FREE, "learns from no others"),
    ],
)
def test_a_warm_start_is_refused_where_the_sampler_would_not_learn(
    sampler: str,
    x: Parameter,
    why: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = OmegaConf.create(
        {
            "hydra": {"sweeper": {"sampler": {"_target_": f"optuna.samplers.{sampler}"}}},
            "study": {"storage": "sqlite:///lzsweep.db", "warm_start": "old"},
        }
    )
    monkeypatch.chdir(tmp_path)
    (problem,) = _teacher_problems(cfg, Space((KIND, x)), [{"objective": OBJECTIVE}])
    assert (why or "there is no 'old' in it") in problem


def test_a_teacher_of_other_objectives_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    make_study(url, name="old")
    cfg = OmegaConf.create(
        {
            "hydra": {"sweeper": {"sampler": {"_target_": "optuna.samplers.TPESampler"}}},
            "study": {"storage": url, "warm_start": "old"},
        }
    )
    space = Space((FREE,))
    (problem,) = _teacher_problems(cfg, space, [{"objective": OBJECTIVE}])
    assert "'old' has loss (minimize) and this one val/loss (minimize)" in problem
    assert not _teacher_problems(cfg, space, [{"objective": {**OBJECTIVE, "metric": "loss"}}])


def databases(launcher: str, file: Path) -> list[str]:
    cfg = OmegaConf.create(
        {
            "hydra": {"launcher": {"_target_": f"some.plugin.{launcher}"}},
            "study": {"storage": f"sqlite:///{file}"},
            "tracking": {"uri": "http://lab:5000"},
        }
    )
    return _database_problems(cfg)


@pytest.mark.parametrize("launcher", ["SlurmLauncher", "RayLauncher", "LSFLauncher"])
def test_a_file_is_refused_where_workers_may_be_elsewhere(launcher: str, tmp_path: Path) -> None:
    (problem,) = databases(launcher, tmp_path / "x.db")
    assert "study.storage must be reachable from other machines" in problem
    assert launcher in problem


@pytest.mark.parametrize("launcher", ["BasicLauncher", "LocalLauncher", "JoblibLauncher"])
@pytest.mark.parametrize(
    ("fstype", "is_refused"),
    [("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)],
)
def test_a_file_is_refused_on_a_network_file_system(
    launcher: str, fstype: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path / "home"), fstype=fstype),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda *, all: mounts)
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for folder in ("home", "link"):
        problems = databases(launcher, tmp_path / folder / "new" / "x.db")
        assert len(problems) == is_refused
        assert all(f"is on {fstype} ({tmp_path / 'home'})" in p for p in problems)
    assert databases(launcher, tmp_path / "x.db") == []

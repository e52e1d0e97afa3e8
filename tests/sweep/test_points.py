"""`study.enqueue`: known-good points of files and of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lzsweep import config
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.points import read_points
from lzsweep.sweep.space import Space, Value
from lzsweep.sweep.syntax import parse_space

SPACE = (
    "network=mine,small", "seed=range(1,9,2)", "lr=tag(log,interval(1e-4,1e-1))",
    "trainer.overfit_batches=0.5,1", "+mine=null,[1,2],'x y'", "batch_size=128",
)  # fmt: skip


@pytest.fixture
def loader(work: Path) -> Any:
    (work / "conf/network").mkdir(parents=True)
    (work / "conf/network/mine.yaml").write_text(
        "defaults: [tiny]\nspace: {network.blocks: 'range(1,4)'}\n"
    )
    return config.make_loader([f"file://{work}/conf", f"file://{config.conf_dir()}"])


def read(loader: Any, *entries: Any) -> tuple[list[dict[str, Value]], list[str]]:
    return read_points(entries, parse(loader), Composer(loader))


def parse(loader: Any, arguments: Sequence[str] = SPACE) -> Space:
    space, problems = parse_space(
        arguments, {}, loader, lambda overrides: Composer(loader).parts(overrides).spaces
    )
    assert problems == []
    return space


def test_a_point_covers_some_or_all_parameters(loader: Any) -> None:
    points, problems = read(
        loader,
        {"lr": 0.01},
        {"network": "mine", "network.blocks": 2, "seed": 3, "lr": 1e-4, "mine": [1, 2]},
        {"network": "small", "trainer": {"overfit_batches": 1}, "mine": "x y"},
        {"mine": None},
    )
    assert problems == []
    assert points == [
        {"lr": 0.01},
        {"network": "mine", "seed": 3, "lr": 1e-4, "mine": "[1,2]", "network.blocks": 2},
        {"network": "small", "trainer.overfit_batches": 1, "mine": "'x y'"},
        {"mine": "null"},
    ]


def test_a_file_holds_a_point_and_what_the_sweep_keeps_anyway(loader: Any, work: Path) -> None:
    (work / "best.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n- override /network: mine\n- override /schedule: plateau\n"
        "lr: 0.02\nbatch_size: 128\nnetwork: {blocks: 3, filters: 16}\n"
        "trainer: {max_epochs: 10}\nloss: {l2: '${lr}'}\n"
    )
    points, problems = read(loader, "best.yaml")
    assert points == [{"network": "mine", "lr": 0.02, "network.blocks": 3}]
    assert problems == [
        "study.enqueue[0] (best.yaml): a point may set what is searched, but loss.l2=0.02 is none"
        " of it and the sweep keeps loss.l2=0.0001; search loss.l2, set it to 0.02, or take it out"
    ]


def test_what_is_wrong_with_points_is_told_at_once(loader: Any, work: Path) -> None:
    (work / "list.yaml").write_text("[1, 2]")
    (work / "bad.yaml").write_text("a: {")
    _, problems = read(
        loader,
        {"lr": 5, "seed": 2, "network": "big"},
        {"batch_size": 64, "nonsense": 1, "schedule": "cosine"},
        {"network.blocks": 2},
        {"network": "small", "network.blocks": 2},
        "none.yaml",
        "bad.yaml",
        "list.yaml",
        7,
    )
    text = "\n".join(problems)
    for part in (
        "[0]: a point must lie in the search space, but lr=5 is outside of tag(log,interval(1e-4",
        "[0]: a point must lie in the search space, but seed=2 is outside of range(1,9,2); change",
        "[0]: a point must lie in the search space, but network=big is outside of mine,small",
        "[1]: a point may set what is searched, but batch_size=64 is none of it and the sweep"
        " keeps batch_size=128",
        "[1]: nonsense is not a key of the configuration",
        "schedule=cosine is none of it and the sweep keeps schedule=plateau",
        "[2]: network.blocks is searched only with network=mine, but the point does not say",
        "[3]: a point may set what is searched, but network.blocks=2 is none of it and the sweep"
        " keeps network.blocks=8",
        "[4] (none.yaml): a point must be a mapping or a YAML file of one, but",
        "[5] (bad.yaml): a point must be a mapping or a YAML file of one, but",
        "[6] (list.yaml): a point must be a mapping or a YAML file of one, but got [1, 2]",
        "[7]: a point must be a mapping or a YAML file of one, but got 7",
    ):
        assert part in text
    assert len(problems) == 12


def test_a_number_keeps_its_kind(loader: Any) -> None:
    points, problems = read(loader, {"seed": 3.0, "trainer.overfit_batches": 0.5}, {"lr": True})
    assert points[0] == {"seed": 3, "trainer.overfit_batches": 0.5}
    assert type(points[0]["seed"]) is int
    assert problems[0].startswith("study.enqueue[1]: a point must lie in the search space, but lr")

"""Samplers and pruners by one word: each is built from its option and decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import NopPruner

from lzsweep import config
from lzsweep.sweep.deciders import make_pruner, make_sampler
from lzsweep.sweep.plugin import PullSweeper  # noqa: F401  # its schema is part of the tree
from lzsweep.sweep.space import Parameter, Space, Value
from tests.sweep.test_study import GRID, make_study

MIXED = Space(
    (
        Parameter("network", CategoricalDistribution(["tiny", "small"]), "tiny,small"),
        Parameter("lr", FloatDistribution(1e-4, 1e-1, log=True), "", is_interval=True),
        Parameter("blocks", IntDistribution(1, 8), "", is_interval=True),
        Parameter(
            "loss.value",
            FloatDistribution(0.1, 1.0),
            "",
            owner=("network", "small"),
            is_interval=True,
        ),
        Parameter("loss.value", IntDistribution(1, 3), "", owner=("network", "tiny")),
    )
)
PRUNERS = sorted(p.stem for p in (config.conf_dir() / "hydra/sweeper/pruner").glob("*.yaml"))


def sweeper(option: str) -> Any:
    config.register_schemas()
    with initialize_config_dir(str(config.conf_dir())):
        return compose("config", [option], return_hydra_config=True).hydra.sweeper


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


SAMPLERS = ("tpe", "random", "cmaes", "nsgaii", "qmc", "gp")


def sweep(url: str, sampler: str, n_trials: int, name: str = "s") -> list[dict[str, Value]]:
    """Search a conditional space for the lowest rate with one slot; the points in their order."""
    study = make_study(url, n_trials=n_trials, name=name, space=MIXED)
    option = sweeper(f"hydra/sweeper/sampler={sampler}").sampler
    option.seed = 5
    if "n_startup_trials" in option:
        option.n_startup_trials = 3
    study.set_deciders(make_sampler(option), NopPruner())
    while claim := study.claim("w"):
        assert MIXED.is_whole(claim.trial.params)
        assert all(p.holds(claim.trial.params[p.key]) for p in MIXED.active(claim.trial.params))
        study.tell(claim, "complete", [float(claim.trial.params["lr"])])
    trials = study.trials()
    assert [(t.number, t.state) for t in trials] == [(i, "complete") for i in range(n_trials)]
    return [dict(t.params) for t in trials]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_searches_a_conditional_space_and_repeats_with_its_seed(
    name: str, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = sweep(url, name, n_trials=10)
    assert {p["network"] for p in points} == {"tiny", "small"}
    assert sweep(f"sqlite:///{tmp_path}/again.db", name, n_trials=10) == points
    assert "independently" not in caplog.text, "what a choice owns is meant to be sampled so"


def test_the_grid_sampler_goes_through_the_queued_grid(url: str) -> None:
    study = make_study(url, n_trials=6, space=GRID)
    sampler = make_sampler(sweeper("hydra/sweeper/sampler=grid").sampler)
    study.set_deciders(sampler, make_pruner(sweeper("hydra/sweeper/pruner=none").pruner))
    study.enqueue(list(GRID.grid()))
    points = []
    while claim := study.claim("w"):
        points.append(dict(claim.trial.params))
        study.tell(claim, "complete", [0.0])
    assert points == list(GRID.grid())


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_is_built_and_spares_the_best(name: str, url: str) -> None:
    study = make_study(url, n_trials=9, space=MIXED)
    pruner = make_pruner(sweeper(f"hydra/sweeper/pruner={name}").pruner)
    study.set_deciders(make_sampler(sweeper("hydra/sweeper/sampler=random").sampler), pruner)
    for value in (5.0, 4.0, 3.0, 2.0, 1.0):
        claim = study.claim("w")
        assert claim is not None
        for step in range(1, 9):  # each is better than all before it
            assert not study.report(claim, step, value - step / 10)
        study.tell(claim, "complete", [value])
    hopeless = study.claim("w")
    assert hopeless is not None
    verdicts = [study.report(hopeless, step, 99.0 + step) for step in range(1, 9)]
    assert any(verdicts) == (name != "none")

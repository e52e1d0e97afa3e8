"""Samplers and pruners by one word: each is built from its option and decides."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lzsweep import config
from lzsweep.sweep.plugin import PullSweeper  # noqa: F401  # its schema is part of the tree
from lzsweep.sweep.space import Space
from lzsweep.sweep.worker import make_pruner, make_sampler
from tests.sweep.test_study import GRID, make_study

MIXED = Space(
    {
        "network": CategoricalDistribution(["tiny", "small"]),
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "blocks": IntDistribution(1, 8),
    },
    (),
    {},
    is_grid=False,
)
PRUNERS = sorted(p.stem for p in (config.conf_dir() / "hydra/sweeper/pruner").glob("*.yaml"))


def sweeper(option: str) -> Any:
    config.register_schemas()
    with initialize_config_dir(str(config.conf_dir())):
        return compose("config", [option], return_hydra_config=True).hydra.sweeper


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "nsgaii", "qmc", "gp"])
def test_every_sampler_proposes_points_of_a_mixed_space(name: str, url: str) -> None:
    study = make_study(url, n_trials=4)
    study.set_deciders(
        make_sampler(sweeper(f"hydra/sweeper/sampler={name}").sampler),
        make_pruner(sweeper("hydra/sweeper/pruner=none").pruner),
    )
    logging.getLogger("optuna").setLevel(logging.ERROR)  # CMA-ES tells of the categorical
    while claim := study.claim(MIXED, "w"):
        assert set(claim.trial.params) == set(MIXED.parameters)
        study.tell(claim, "complete", [float(claim.trial.params["lr"])])
    assert [t.state for t in study.trials()] == ["complete"] * 4


def test_the_grid_sampler_goes_through_the_queued_grid(url: str) -> None:
    study = make_study(url, n_trials=6, space=GRID)
    sampler = make_sampler(sweeper("hydra/sweeper/sampler=grid").sampler)
    study.set_deciders(sampler, make_pruner(sweeper("hydra/sweeper/pruner=none").pruner))
    study.enqueue(list(GRID.grid()), GRID)
    points = []
    while claim := study.claim(GRID, "w"):
        points.append(dict(claim.trial.params))
        study.tell(claim, "complete", [0.0])
    assert points == list(GRID.grid())


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_is_built_and_spares_the_best(name: str, url: str) -> None:
    study = make_study(url, n_trials=9)
    pruner = make_pruner(sweeper(f"hydra/sweeper/pruner={name}").pruner)
    study.set_deciders(make_sampler(sweeper("hydra/sweeper/sampler=random").sampler), pruner)
    for value in (5.0, 4.0, 3.0, 2.0, 1.0):
        claim = study.claim(MIXED, "w")
        assert claim is not None
        for step in range(1, 9):  # each is better than all before it
            assert not study.report(claim, step, value - step / 10)
        study.tell(claim, "complete", [value])
    hopeless = study.claim(MIXED, "w")
    assert hopeless is not None
    verdicts = [study.report(hopeless, step, 99.0 + step) for step in range(1, 9)]
    assert any(verdicts) == (name != "none")

"""What is refused before a sweep begins."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution

from lzsweep.sweep.checks import _space_problems
from lzsweep.sweep.space import Parameter, Space

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
    sampler: str, x: Parameter, why: str | None
) -> None:
    cfg = OmegaConf.create(
        {
            "hydra": {"sweeper": {"sampler": {"_target_": f"optuna.samplers.{sampler}"}}},
            "study": {"n_trials": 5, "warm_start": "old"},
        }
    )
    problems = _space_problems(cfg, Space((KIND, x)))
    assert len(problems) == (why is not None)
    assert all(why in problem for problem in problems if why)

"""A point is trained once: refused proposals, finite spaces, queued points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from lzsweep.sweep.space import Parameter, Space, Value, point_key
from lzsweep.sweep.study import Study
from tests.sweep.test_study import make_study, must_claim

TREE = Space(
    (
        Parameter("network", CategoricalDistribution(["small", "mine"]), "small,mine"),
        Parameter("blocks", IntDistribution(1, 2), "int(interval(1,2))", is_interval=True),
        Parameter(
            "lr",
            FloatDistribution(0, 0.2, step=0.1),
            "range(0,0.3,0.1)",
            owner=("network", "mine"),
        ),
    )
)
LINE = Space((Parameter("x", FloatDistribution(0.0, 1.0), "interval(0,1)", is_interval=True),))


class Stubborn(BaseSampler):
    """Proposes the same point for ever, and counts how often it was asked."""

    n_asked = 0

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        self.n_asked += 1
        return {}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[0]
        return distribution.low


def train(study: Study, space: Space, n: int = 99) -> list[dict[str, Value]]:
    points: list[dict[str, Value]] = []
    while len(points) < n and (claim := study.claim("w")):
        points.append(dict(claim.trial.params))
        study.tell(claim, "complete", [float(len(points))])
    return points


def test_a_finite_space_ends_when_each_point_is_trained_once(url: str) -> None:
    study = make_study(url, n_trials=50, space=TREE)
    study.set_deciders(Stubborn(), NopPruner())
    points = train(study, TREE)
    assert sorted(map(str, points)) == sorted(map(str, TREE.grid()))
    assert len(points) == 2 + 2 * 3
    assert study.is_done()
    assert study.spent() == "every point of the space is trained"
    assert [t.number for t in study.trials()] == list(range(8)), "a refused proposal has no number"


def test_points_that_run_wait_or_failed_count_as_well(url: str) -> None:
    study = make_study(url, n_trials=50, space=TREE)
    study.set_deciders(TPESampler(seed=1, constant_liar=True), NopPruner())
    lost = must_claim(study)
    assert not study.retry(lost.trial, "node lost", max_retries=3)
    again = must_claim(study)
    assert again.trial.params == lost.trial.params
    claims = [again, *(must_claim(study) for _ in range(7))]
    assert len({point_key(c.trial.params) for c in claims}) == 8
    assert study.claim("w") is None, "all points run"
    assert not study.is_done()
    study.tell(claims[0], "infeasible", reason="loss is nan")
    study.tell(claims[1], "error", reason="disk full")
    assert study.claim("w") is None, "what failed is not trained again"
    for claim in claims[2:]:
        study.tell(claim, "complete", [0.0])
    assert study.is_done()


def test_a_stubborn_sampler_gives_way_to_chance_where_there_is_no_end(url: str) -> None:
    study = make_study(url, n_trials=4, space=LINE)
    sampler = Stubborn()
    study.set_deciders(sampler, NopPruner())
    points = train(study, LINE)
    assert points[0] == {"x": 0.0}
    assert len({p["x"] for p in points}) == 4
    assert sampler.n_asked == 1 + 3 * 10


def test_the_sampler_learns_of_each_point_once(url: str) -> None:
    study = make_study(url, n_trials=8, space=TREE)
    study.set_deciders(TPESampler(seed=1, n_startup_trials=2), NopPruner())
    train(study, TREE)
    assert [row.state for row in study.rows()] == [TrialState.COMPLETE] * 8


@pytest.mark.parametrize("pruner", [NopPruner(), HyperbandPruner()], ids=["none", "hyperband"])
def test_queued_points_come_first_and_once(url: str, pruner: Any) -> None:
    good: Sequence[dict[str, Value]] = [
        {"network": "mine", "blocks": 2, "lr": 0.1},
        {"blocks": 1},
        {"network": "mine", "blocks": 2, "lr": 0.1},
    ]
    for _ in range(2):
        study = make_study(url, n_trials=4, space=TREE)
        study.set_deciders(RandomSampler(seed=1), pruner)
        with study.lock():
            study.enqueue(good)
    assert sum(t.state == "waiting" for t in study.trials()) == 2
    points = train(study, TREE, n=2)
    assert points[0] == good[0]
    assert points[1]["blocks"] == 1
    assert TREE.is_whole(points[1])
    with study.lock():
        study.enqueue(good)  # joined once more
    assert not any(t.state == "waiting" for t in study.trials())
    assert len(train(study, TREE)) == 2
    assert len({point_key(t.params) for t in study.trials()}) == 4

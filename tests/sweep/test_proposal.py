"""A point is trained once: refused proposals, finite spaces, queued points."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from lzsweep.sweep.proposal import _settle
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
A = ("network", "a")
NETWORKS = CategoricalDistribution(["a", "b", "c", "d", "e", "f", "g", "h", "i", "big"])
MIXED = Space(
    (
        Parameter("network", NETWORKS, "glob(*)"),
        Parameter("k", IntDistribution(1, 2), "int(interval(1,2))", owner=A, is_interval=True),
        Parameter(
            "lr",
            FloatDistribution(0.0, 1.0),
            "interval(0,1)",
            owner=("network", "big"),
            is_interval=True,
        ),
    )
)
"""Nine networks with ten points, and one without an end."""


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


@pytest.mark.parametrize(
    "sampler",
    [RandomSampler(seed=1), TPESampler(seed=1, multivariate=True), Stubborn()],
    ids=["random", "tpe", "stubborn"],
)
def test_an_option_that_is_used_up_is_proposed_no_more(
    tmp_path: Path, sampler: BaseSampler
) -> None:
    study = make_study(f"sqlite:///{tmp_path}/study.db", n_trials=30, space=MIXED)
    study.set_deciders(sampler, NopPruner())
    points = train(study, MIXED)
    assert len({point_key(point) for point in points}) == len(points) == 30
    assert study.is_done()
    assert all(MIXED.is_whole(point) for point in points)


def test_the_sampler_decides_what_is_left_of_an_option(tmp_path: Path) -> None:
    study = make_study(f"sqlite:///{tmp_path}/study.db", n_trials=15, space=MIXED)
    with study.lock():
        rest = [{"network": str(name)} for name in NETWORKS.choices if name not in ("a", "big")]
        study.enqueue([{"network": "a", "k": 1}, {"network": "a", "k": 2}, *rest])
    assert len(train(study, MIXED, n=10)) == 10
    study.set_deciders(Stubborn(), NopPruner())  # it would take `a` for ever
    assert train(study, MIXED, n=1) == [{"network": "big", "lr": 0.0}]


def test_a_queued_point_takes_what_is_left_to_it(tmp_path: Path) -> None:
    study = make_study(f"sqlite:///{tmp_path}/study.db", n_trials=30, space=MIXED)
    study.set_deciders(Stubborn(), NopPruner())
    with study.lock():
        study.enqueue([{"network": "a", "k": 1}, {"network": "a"}])
    assert train(study, MIXED, n=2) == [{"network": "a", "k": 1}, {"network": "a", "k": 2}]


@pytest.mark.parametrize("is_early", [False, True], ids=["begun", "queued"])
def test_a_queued_point_that_could_only_be_a_repeat_is_dropped(url: str, is_early: bool) -> None:
    whole: list[dict[str, Value]] = [{"network": "a", "k": 1}, {"network": "a", "k": 2}]
    left_open: list[dict[str, Value]] = [{"network": "a"}]
    queue = left_open + whole if is_early else whole + left_open
    study = make_study(url, n_trials=5, space=MIXED)
    with study.lock():
        study.enqueue(queue)
    points = train(study, MIXED)
    assert points[:2] == whole
    assert len({point_key(point) for point in points}) == len(points) == 5, "it costs no trial"
    dropped = 0 if is_early else 2
    assert [t.number for t in study.trials()] == [n for n in range(6) if n != dropped]
    assert [t.number for t in study.attempts()] == [n for n in range(6) if n != dropped]
    assert study.is_done()
    joined = make_study(url, n_trials=6, space=MIXED)
    with joined.lock():
        joined.enqueue(queue)
    assert not any(t.state == "waiting" for t in joined.trials()), "nor does it come back"
    assert len(train(joined, MIXED)) == 1


def test_a_finite_space_ends_whatever_is_dropped(url: str) -> None:
    study = make_study(url, n_trials=50, space=TREE)
    killed = study._create()  # and its worker with it, before it had a point
    others = [must_claim(study) for _ in range(8)]
    with study.lock():
        study.enqueue([{"network": "small"}])
    assert study.claim("w") is None
    assert [t.state for t in study.trials()] == ["running"] * 9
    for claim in others:
        study.tell(claim, "complete", [0.5])
    assert not study.is_done(), "one may be trained yet"
    assert not study.retry(study.trial(killed.number), "node lost", max_retries=3)
    assert study.claim("w") is None, "all its points are trained"
    assert [t.number for t in study.trials()] == list(range(1, 9))
    assert study.is_done()
    assert study.spent() == "every point of the space is trained"


def test_an_option_is_chosen_as_often_as_chance_would_meet_a_new_point_there() -> None:
    kind = Parameter("kind", CategoricalDistribution(["new", "half", "old", "free"]), "")
    owned = [Parameter("k", IntDistribution(1, 2), "", owner=("kind", o)) for o in ("new", "half")]
    x = Parameter("x", FloatDistribution(0.0, 1.0), "", owner=("kind", "free"), is_interval=True)
    space = Space((kind, *owned, x))
    known = [point_key({"kind": "half", "k": 1}), point_key({"kind": "old"})]
    dice = random.Random(1)
    chosen = Counter(str(_settle(space, {}, known, dice)["kind"]) for _ in range(5000))
    assert chosen.keys() == {"new", "half", "free"}
    assert [chosen[kind] / 5000 for kind in ("new", "half", "free")] == pytest.approx(
        [0.4, 0.2, 0.4], abs=0.03
    )
    assert _settle(space, {"kind": "half"}, known, dice) == {"kind": "half"}, "what is given stays"

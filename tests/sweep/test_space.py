"""The search space: its points, its size, its overrides, with and without conditions."""

from __future__ import annotations

import json

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lzsweep.sweep.space import Parameter, Space, Value, point_key, shown_params

NETWORK = Parameter("network", CategoricalDistribution(["small", "mine", "big"]), "small,mine,big")
MINE = ("network", "mine")
TREE = Space(
    (
        NETWORK,
        Parameter("seed", IntDistribution(1, 2), "range(1,3)"),
        Parameter("lr", CategoricalDistribution([0.1, 0.2]), "0.1,0.2", owner=MINE),
        Parameter("lr", CategoricalDistribution([0.5]), "0.5", owner=("network", "big")),
        Parameter("loss.l2", CategoricalDistribution([0]), "0", owner=MINE, prefix="++"),
    ),
    ("batch_size=64",),
)


def test_the_grid_of_a_tree_holds_each_combination_once() -> None:
    points = list(TREE.grid())
    assert points == [
        {"network": "small", "seed": 1},
        {"network": "small", "seed": 2},
        {"network": "mine", "seed": 1, "lr": 0.1, "loss.l2": 0},
        {"network": "mine", "seed": 1, "lr": 0.2, "loss.l2": 0},
        {"network": "mine", "seed": 2, "lr": 0.1, "loss.l2": 0},
        {"network": "mine", "seed": 2, "lr": 0.2, "loss.l2": 0},
        {"network": "big", "seed": 1, "lr": 0.5},
        {"network": "big", "seed": 2, "lr": 0.5},
    ]
    assert TREE.size() == len(points)
    assert all(TREE.is_whole(point) for point in points)
    assert not TREE.is_whole({"network": "mine", "seed": 1})


@pytest.mark.parametrize(
    ("chosen", "size"),
    [
        ({"network": "mine"}, 4),
        ({"network": "mine", "lr": 0.2}, 2),
        ({"seed": 1}, 4),
        ({"network": "small", "seed": 1}, 1),
    ],
    ids=str,
)
def test_the_points_with_some_values_are_a_part_of_all(
    chosen: dict[str, Value], size: int
) -> None:
    part = [point for point in TREE.grid() if chosen.items() <= point.items()]
    assert list(TREE.grid(chosen)) == part
    assert TREE.size(chosen) == TREE.n_left(chosen, []) == len(part) == size
    known = {point_key(point) for point in TREE.grid()}
    assert TREE.n_left(chosen, known) == 0
    assert TREE.n_left(chosen, known - {point_key(part[0])}) == 1


def test_only_where_a_continuous_range_is_open_there_is_no_end() -> None:
    lr = Parameter("lr", FloatDistribution(0.0, 1.0), "", owner=MINE, is_interval=True)
    space = Space((NETWORK, lr))
    assert space.size() is None
    assert space.n_left({"network": "mine"}, []) is None
    assert space.n_left({"network": "mine", "lr": 0.5}, []) == 1
    assert space.n_left({"network": "big"}, [point_key({"network": "big"})]) == 0


def test_what_a_choice_owns_has_a_name_of_its_own_and_people_see_the_key() -> None:
    assert [p.name for p in TREE.parameters] == [
        "network", "seed", "lr@network=mine", "lr@network=big", "loss.l2@network=mine",
    ]  # fmt: skip
    d = FloatDistribution(0, 1)
    assert shown_params({"lr@network=mine": 0.25, "db@backup": 1}, dict.fromkeys(
        ["lr@network=mine", "db@backup"], d
    )) == {"lr": 0.25, "db@backup": 1}  # fmt: skip
    assert TREE.texts == {
        "network": "small,mine,big",
        "seed": "range(1,3)",
        "lr": "0.1,0.2 for network=mine; 0.5 for network=big",
        "loss.l2": "0 for network=mine",
    }


def test_overrides_are_those_of_the_choice() -> None:
    point: dict[str, Value] = {"network": "mine", "seed": 2, "lr": 0.2, "loss.l2": 0}
    assert TREE.to_overrides(point) == ["network=mine", "seed=2", "lr=0.2", "++loss.l2=0"]
    assert TREE.to_overrides({"network": "small", "lr": 0.2}) == ["network=small"]


def test_a_condition_may_hang_on_a_condition() -> None:
    space = Space(
        (
            NETWORK,
            Parameter("optimizer", CategoricalDistribution(["sgd", "adamw"]), "", owner=MINE),
            Parameter("lr", IntDistribution(1, 3), "", owner=("optimizer", "adamw")),
        )
    )
    assert space.size() == len(list(space.grid())) == 1 + (1 + 3) + 1


def test_a_study_keeps_the_space_as_data() -> None:
    data = json.loads(json.dumps(TREE.to_json()))
    assert Space.from_json(data, TREE.fixed) == TREE


@pytest.mark.parametrize(
    ("distribution", "size"),
    [
        (IntDistribution(1, 7, step=2), 4),
        (IntDistribution(1, 8, log=True), 8),
        (FloatDistribution(0, 0.9, step=0.1), 10),
        (FloatDistribution(0.5, 0.5), 1),
        (FloatDistribution(0, 1), None),
        (CategoricalDistribution(["a", "b"]), 2),
    ],
)
def test_a_space_knows_whether_it_is_finite(
    distribution: IntDistribution | FloatDistribution | CategoricalDistribution, size: int | None
) -> None:
    parameter = Parameter("a", distribution, "")
    assert Space((parameter,)).size() == size
    if size is not None:
        assert len(parameter.values()) == size
        assert all(parameter.holds(value) for value in parameter.values())


def test_a_huge_grid_is_counted_not_listed() -> None:
    axis = [Parameter(f"a{i}", IntDistribution(0, 9_999), "") for i in range(5)]
    assert Space(tuple(axis)).size() == 10**20
    assert next(Space(tuple(axis)).grid()) == {f"a{i}": 0 for i in range(5)}


def test_a_parameter_holds_values_of_its_type_only() -> None:
    blocks = Parameter("blocks", IntDistribution(1, 8), "")
    assert [blocks.holds(v) for v in (1, 8, 9, 2.5, True, "2")] == [True, True] + [False] * 4
    flag = Parameter("flag", CategoricalDistribution([True, "null"]), "")
    assert [flag.holds(v) for v in (True, 1, "null", None)] == [True, False, True, False]

"""The search space: Hydra's sweep syntax keeps Hydra's meaning."""

from __future__ import annotations

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lzsweep.errors import ConfigError
from lzsweep.sweep.space import Space, parse_space, to_overrides


def parse(*arguments: str, **study_space: str) -> Space:
    loader = ConfigLoaderImpl(create_config_search_path(None))
    return parse_space(arguments, study_space, loader)


def test_sweeps_become_distributions_and_the_rest_stays_fixed() -> None:
    space = parse(
        "network=small,big", "lr=tag(log,interval(1e-4,1e-1))", "~callbacks", "seed=3", "+a=[1,2]"
    )
    assert space.parameters == {
        "network": CategoricalDistribution(["small", "big"]),
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
    }
    assert space.fixed == ("~callbacks", "seed=3", "+a=[1,2]")
    assert space.texts == {"network": "small,big", "lr": "tag(log,interval(1e-4,1e-1))"}
    assert not space.is_grid


def test_a_range_excludes_its_end_and_makes_a_grid_with_choices() -> None:
    space = parse("blocks=range(1,4)", "network=tiny,small")
    assert space.parameters["blocks"] == IntDistribution(1, 3)
    assert space.is_grid
    points = list(space.grid())
    assert len(points) == space.grid_size() == 6
    assert points[0] == {"blocks": 1, "network": "tiny"}
    assert points[1] == {"blocks": 1, "network": "small"}


def test_an_interval_of_integers_is_no_grid() -> None:
    assert not parse("blocks=interval(1,4)").is_grid


@pytest.mark.parametrize(
    ("sweep", "overrides"),
    [
        ("a=1,2", ["a=1"]),
        ("a=null,2", ["a=null"]),
        ("a=true,false", ["a=True"]),
        ("a='x y',z", ["a='x y'"]),
        ("a=[1,2],[3]", ["a=[1,2]"]),
        ("a={b:1},{b:2}", ["a={b:1}"]),
        ("a=1e-5,1e-4", ["a=1e-05"]),
        ("a=choice(x,y)", ["a=x"]),
        ("a=range(0,1,0.25)", ["a=0.0"]),
    ],
)
def test_a_point_becomes_overrides_that_compose(sweep: str, overrides: list[str]) -> None:
    assert to_overrides(next(parse(sweep).grid())) == overrides


def test_the_last_word_on_a_key_holds() -> None:
    space = parse("lr=interval(0,1)", "network=tiny", "network=tiny,small", "lr=0.5")
    assert list(space.parameters) == ["network"]
    assert space.fixed == ("lr=0.5",)


def test_an_added_key_is_searched_as_an_addition() -> None:
    assert to_overrides(next(parse("+mine=1,2").grid())) == ["+mine=1"]


def test_equal_choices_are_one_point() -> None:
    assert len(list(parse("a=1,1,2").grid())) == 2


def test_the_command_line_wins_over_the_study_space() -> None:
    space = parse("lr=0.1", lr="interval(0.1,1)", batch_size="64,128")
    assert list(space.parameters) == ["batch_size"]
    assert space.fixed == ("lr=0.1",)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"low=2.0, high=1.0") as caught:
        parse("a=interval(2,1)", "b=tag(log,interval(0,1))", "c=tag(lin,interval(0,1))")
    text = str(caught.value)
    assert "b=tag(log,interval(0,1)): `low > 0` must hold" in text
    assert "unknown tag lin" in text

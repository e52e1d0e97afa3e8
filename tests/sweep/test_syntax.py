"""Hydra's sweep syntax keeps Hydra's meaning, and what comes back composes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lzsweep import config
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.space import Space, Value
from lzsweep.sweep.syntax import first_value, parse_space, probe_points

LOG = FloatDistribution(1e-4, 1e-1, log=True)


def parse(*arguments: str, **study_space: Any) -> Space:
    space, problems = read(arguments, study_space)
    assert problems == []
    return space


def read(
    arguments: Sequence[str],
    study_space: Mapping[str, Any] | None = None,
    spaces: Mapping[str, Any] | None = None,
) -> tuple[Space, list[str]]:
    """Parse; `spaces` maps `group=option` to the sub-space of that option's file."""
    loader = ConfigLoaderImpl(create_config_search_path(f"file://{config.conf_dir()}"))

    def spaces_of(overrides: Sequence[str]) -> dict[str, Any]:
        chosen = [o for o in (spaces or {}) if o in overrides or o.startswith("default ")]
        return {o.removeprefix("default ").partition("=")[0]: (spaces or {})[o] for o in chosen}

    return parse_space(arguments, study_space or {}, loader, spaces_of)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    return {p.name: p.distribution for p in space.parameters}


def test_sweeps_become_distributions_and_the_rest_stays_fixed() -> None:
    space = parse(
        "network=small,big", "lr=tag(log,interval(1e-4,1e-1))", "~callbacks", "seed=3",
        "+a=[1,2]", "++b=1", "c=extend_list(1)", "c=extend_list(2)",
    )  # fmt: skip
    assert distributions(space) == {
        "network": CategoricalDistribution(["small", "big"]),
        "lr": LOG,
    }
    assert space.fixed == (
        "~callbacks", "seed=3", "+a=[1,2]", "++b=1", "c=extend_list(1)", "c=extend_list(2)",
    )  # fmt: skip
    assert space.texts == {"network": "small,big", "lr": "tag(log,interval(1e-4,1e-1))"}
    assert not space.is_grid


@pytest.mark.parametrize(
    ("sweep", "distribution", "is_grid"),
    [
        ("choice(1,2)", CategoricalDistribution([1, 2]), True),
        ("range(1,4)", IntDistribution(1, 3), True),
        ("range(4)", IntDistribution(0, 3), True),
        ("range(1,8,3)", IntDistribution(1, 7, step=3), True),
        ("range(5,1,-2)", IntDistribution(3, 5, step=2), True),
        ("range(-3,-1)", IntDistribution(-3, -2), True),
        ("range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25), True),
        ("float(range(1,3))", CategoricalDistribution([1.0, 2.0]), True),
        ("interval(1,4)", FloatDistribution(1, 4), False),
        ("int(interval(1,4))", IntDistribution(1, 4), False),
        ("tag(log,interval(1e-4,1e-1))", LOG, False),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True), False),
        ("int(tag(log,interval(1,64)))", IntDistribution(1, 64, log=True), False),
        ("tag(log,choice(1,2))", CategoricalDistribution([1, 2]), True),
        ("sort(3,1,2)", CategoricalDistribution([1, 2, 3]), True),
        ("sort(3,1,2,reverse=true)", CategoricalDistribution([3, 2, 1]), True),
        ("int(choice(1.0,2.0))", CategoricalDistribution([1, 2]), True),
        ("true,false", CategoricalDistribution([True, False]), True),
        ("null,2", CategoricalDistribution(["null", 2]), True),
        ("nan,inf,1", CategoricalDistribution(["nan", "inf", 1]), True),
        ("1,true", CategoricalDistribution(["1", "True"]), True),
        ("1,1,2", CategoricalDistribution([1, 2]), True),
        ("choice([1,2],[3])", CategoricalDistribution(["[1,2]", "[3]"]), True),
        ("choice({a:1},{b:2})", CategoricalDistribution(["{a:1}", "{b:2}"]), True),
        ("str(1,2)", CategoricalDistribution(["'1'", "'2'"]), True),
        ("'x y',z", CategoricalDistribution(["'x y'", "z"]), True),
        ("'',z", CategoricalDistribution(["''", "z"]), True),
        ("x\\,y,z", CategoricalDistribution(["x\\,y", "z"]), True),
        ("${lr},1", CategoricalDistribution(["${lr}", 1]), True),
    ],
)
def test_each_form_of_sweep(sweep: str, distribution: BaseDistribution, is_grid: bool) -> None:
    space = parse(f"a={sweep}")
    assert distributions(space) == {"a": distribution}
    assert space.is_grid == is_grid
    if space.size() is None:
        return
    # Each value goes back as an override that means what Hydra's own sweep means.
    parser = OverridesParser.create()
    back = [parser.parse_overrides(space.to_overrides(point))[0].value() for point in space.grid()]
    if is_grid:
        override = parser.parse_overrides([f"a={sweep}"])[0]
        hydras = [override._convert_value(v) for v in override.sweep_iterator()]
        assert repr(back) == repr(list({repr(v): v for v in hydras}.values()))


def test_glob_takes_the_options_of_its_group() -> None:
    space = parse("network=glob(*,exclude=[big,huge])")
    assert distributions(space) == {"network": CategoricalDistribution(["small", "tiny"])}


@pytest.mark.parametrize("sweep", ["shuffle(1,2,3,4)", "shuffle(range(1,5))"])
def test_a_shuffle_is_one_order_for_all_workers(sweep: str) -> None:
    space = parse(f"a={sweep}")
    kept = Space.from_json(space.to_json(), ())
    assert list(kept.grid()) == list(space.grid())
    assert sorted(p["a"] for p in space.grid()) == [1, 2, 3, 4]


def test_steps_give_the_numbers_that_hydra_gives() -> None:
    values = [p["a"] for p in parse("a=range(0,1,0.1)").grid()]
    assert values == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@pytest.mark.parametrize(
    ("sweep", "override"),
    [("+a=1,2", "+a=1"), ("++a=1,2", "++a=1"), ("a@b=x,y", "a@b=x"), ("a=1,2", "a=1")],
)
def test_how_a_key_is_set_goes_back_and_people_see_the_key(sweep: str, override: str) -> None:
    space = parse(sweep)
    assert space.to_overrides(next(space.grid())) == [override]
    assert space.parameters[0].key == ("a@b" if "@" in sweep else "a")


def test_the_last_word_on_a_key_holds() -> None:
    space = parse("lr=interval(0,1)", "network=tiny", "network=tiny,small", "lr=0.5")
    assert [p.name for p in space.parameters] == ["network"]
    assert space.fixed == ("lr=0.5",)
    assert parse("lr=interval(0,1)", "++lr=0.5").parameters == ()


def test_the_command_line_wins_over_the_study_space() -> None:
    space = parse("lr=0.1", lr="interval(0.1,1)", batch_size="64,128")
    assert [p.name for p in space.parameters] == ["batch_size"]
    assert space.fixed == ("lr=0.1",)
    assert parse("+x=1", x="1,2").parameters == ()


def test_the_study_space_takes_whatever_the_command_line_takes() -> None:
    given = {
        "+a": "1,2",
        "++b": "choice(3)",
        "~callbacks": None,
        "seed": 7,
        "c": [1, 2],
        "d": None,
    }
    space, problems = read([], given)
    assert problems == []
    assert [f"{p.prefix}{p.key}" for p in space.parameters] == ["+a", "++b"]
    assert space.fixed == ("~callbacks", "seed=7", "c=[1,2]", "d=null")


def test_all_problems_are_told_at_once() -> None:
    _, problems = read(
        ["a=interval(2,1)", "b=tag(log,interval(0,1))", "c=tag(int,interval(0,1))", "~d=1,2"],
        {"e": "choice(", "network": "glob(nothing*)"},
    )
    text = "\n".join(problems)
    assert "low=2.0, high=1.0" in text
    assert "b=tag(log,interval(0,1)): `low > 0` must hold" in text
    assert "unknown tag int; the one known tag is `log`; for integers write int(interval" in text
    assert "a deletion cannot be searched; write ~d" in text
    assert "study.space.e: e=choice(" in text
    assert "`glob` matched no option" in text
    assert len(problems) == 6


@pytest.mark.parametrize(
    "sweep",
    [
        "interval(0.1,inf)", "interval(0.1,nan)", "interval(nan,1)", "interval(-inf,1)",
        "interval(inf,inf)", "interval(1,1e400)", "interval(-1e308,1e308)",
        "float(interval(1,inf))", "tag(log,interval(0.1,inf))", "tag(log,interval(nan,1))",
        "range(inf)", "range(0,nan)", "range(-inf,0)", "range(0,10,inf)", "float(range(0,inf))",
        "tag(log,range(1,inf))", "shuffle(range(1,inf))",
    ],
)  # fmt: skip
def test_a_sweep_without_an_end_is_refused_wherever_it_stands(sweep: str) -> None:
    rule = "must have finite ends and a finite"
    for problems, place in (
        (read([f"lr={sweep}"])[1], ""),
        (read([], {"lr": sweep})[1], ""),
        (read(["network=mine"], {}, {"network=mine": {"lr": sweep}})[1], "the space of network: "),
        (
            read(["network=tiny,small"], {}, {"network=tiny": {"lr": sweep}})[1],
            "the space of network=tiny: ",
        ),
    ):
        (problem,) = problems
        assert problem.startswith(f"{place}lr={sweep}: a")
        assert rule in problem
        assert "; set " in problem


def test_a_number_that_no_computer_counts_to_is_told_as_well() -> None:
    _, problems = read([f"lr=range(1{400 * '0'})"])
    assert problems[0].endswith("int too large to convert to float")


@pytest.mark.parametrize(
    ("sweep", "root"),
    [
        ("study.n_trials=1,2", "study"),
        ("study.seeds=range(1,3)", "study"),
        ("++study.rung=interval(1,2)", "study"),
        ("study={seeds:1},{seeds:2}", "study"),
        ("worker.slots=1,2", "worker"),
        ("tracking.system_metrics_s=1,10", "tracking"),
        ("objective.metric=val/policy_loss,val/value_mse", "objective"),
        ("hydra.sweeper.sampler.seed=1,2", "hydra"),
        ("hydra/sweeper/sampler=tpe,random", "hydra"),
        ("+network@worker.own=tiny,small", "worker"),
    ],
)
def test_what_no_trial_reads_is_refused_wherever_it_is_searched(sweep: str, root: str) -> None:
    key, _, text = sweep.partition("=")
    for place, (space, problems) in {
        sweep: read([sweep, "lr=1,2"]),
        f"study.space: {sweep}": read(["lr=1,2"], {key: text}),
        f"the space of network: {sweep}": read(
            ["network=tiny", "lr=1,2"], {}, {"network=tiny": {key: text}}
        ),
        f"the space of network=tiny: {sweep}": read(
            ["network=tiny,small", "lr=1,2"], {}, {"network=tiny": {key: text}}
        ),
    }.items():
        if place.startswith("the space") and "@" in key:
            continue  # a space holds no packages anyway
        (problem,) = problems
        assert problem == (
            f"{place}: what is searched must be read by each trial, but {root} is read once for"
            f" the whole sweep; take {key.lstrip('+')} out of the search and set it on the command"
            " line, in a sweep for each value"
        )
        assert {p.key for p in space.parameters} <= {"network", "lr"}, "nor is it searched"


def test_what_no_trial_reads_has_no_value_among_what_is_searched() -> None:
    space, problems = read([], {"worker.count": 4, "studying": 1})
    assert space.fixed == ("studying=1",)
    assert problems[0].startswith("study.space: worker.count=4: what is searched must be read by")
    space, problems = read(["study.n_trials=1,2", "study.n_trials=3"], {"study.n_trials": "4,5"})
    assert (space.fixed, problems) == (("study.n_trials=3",), []), "the last word holds"


# What options own


MINE = {"lr": "tag(log,interval(1e-4,1e-1))", "batch_size": "choice(64,128)"}


def test_an_option_that_is_fixed_adds_its_space_under_the_plain_names() -> None:
    for arguments, spaces in ((["network=mine"], {"network=mine": MINE}), ([], {"default network=mine": MINE})):  # fmt: skip  # noqa: E501
        space, problems = read(arguments, {}, spaces)
        assert problems == []
        assert distributions(space) == {
            "lr": LOG,
            "batch_size": CategoricalDistribution([64, 128]),
        }


def test_an_option_that_is_searched_owns_its_space() -> None:
    space, problems = read(["network=small,mine"], {}, {"network=mine": MINE})
    assert problems == []
    assert distributions(space) == {
        "network": CategoricalDistribution(["small", "mine"]),
        "lr@network=mine": LOG,
        "batch_size@network=mine": CategoricalDistribution([64, 128]),
    }
    assert [dict(p)["network"] for p in probe_points(space)] == ["small", "mine", "mine", "mine"]


def test_what_is_given_wins_over_what_an_option_owns() -> None:
    space, _ = read(
        ["network=small,mine", "lr=0.1"], {"batch_size": "1,2"}, {"network=mine": MINE}
    )
    assert [p.name for p in space.parameters] == ["network", "batch_size"]


def test_a_space_may_choose_an_option_that_owns_a_space() -> None:
    space, problems = read(
        ["network=small,tiny"],
        {},
        {"network=tiny": {"optimizer": "sgd,adamw"}, "optimizer=adamw": {"lr": "1e-3,1e-2"}},
    )
    assert problems == []
    assert [p.name for p in space.parameters] == [
        "network", "optimizer@network=tiny", "lr@optimizer=adamw",
    ]  # fmt: skip
    assert space.size() == 1 + 1 + 2
    assert {"network": "tiny", "optimizer": "adamw", "lr": 0.01} in list(probe_points(space))


def test_two_groups_must_not_own_the_same_key() -> None:
    _, problems = read(
        ["network=small,tiny", "optimizer=sgd,adamw"],
        {},
        {"network=tiny": {"lr": "1,2"}, "optimizer=adamw": {"lr": "3,4"}},
    )
    assert problems == [
        "one group at most may own the space of a key, but network and optimizer both own lr;"
        " take it out of one, or set it in study.space"
    ]


def test_a_bad_space_says_whose_it_is() -> None:
    _, problems = read(
        ["network=small,tiny"],
        {},
        {"network=tiny": {"lr": "interval(2,1)", "a": "choice(", "~b": None}, "network=small": 3},
    )
    text = "\n".join(problems)
    assert "the space of network=tiny: lr=interval(2,1): `low <= high` must hold" in text
    assert "the space of network=tiny: a=choice(" in text
    assert "the space of network=tiny: ~b searches nothing" in text
    assert "the space of network=small must map keys to sweeps, but got 3" in text


def test_a_continuous_range_is_tried_inside() -> None:
    space = parse("a=interval(1,4)", "b=interval(2,2)", "c=tag(log,interval(1e-4,1))")
    first = {p.key: first_value(p) for p in space.parameters}
    assert first == {"a": pytest.approx(2.854), "b": 2.0, "c": pytest.approx(0.0297, rel=0.01)}


# What goes back composes


@pytest.fixture
def mine(tmp_path: Path) -> list[str]:
    """Sources with a network of the user's own, which owns a space."""
    (tmp_path / "network").mkdir()
    (tmp_path / "network/mine.yaml").write_text(
        "defaults: [tiny]\nblocks: 3\n"
        "space: {lr: 'tag(log,interval(1e-3,1e-1))', network.filters: 'choice(16,32)'}\n"
    )
    return [f"file://{tmp_path}", f"file://{config.conf_dir()}"]


def test_a_space_is_taken_out_of_what_is_composed(mine: list[str]) -> None:
    parts = Composer(config.make_loader(mine)).parts(["network=mine"])
    assert parts.spaces == {
        "network": {"lr": "tag(log,interval(1e-3,1e-1))", "network.filters": "choice(16,32)"}
    }
    assert "space" not in parts.plain["network"]
    assert "space" not in parts.plain["module"]["network"]
    assert parts.choices["network"] == "mine"


def test_points_of_real_configs_compose(mine: list[str]) -> None:
    loader = config.make_loader(mine)
    composer = Composer(loader)
    space, problems = parse_space(
        [
            "network=mine,small", "trainer.overfit_batches=choice(0.5,1)", "+mine=[1,2],{a:'x y'}",
            "++trainer.max_time=null,'00:00:10:00'", "~optimizer.nesterov", "seed=range(3,1,-1)",
            "data.path='a b',c\\,d",
        ],
        {},
        loader,
        lambda overrides: composer.parts(overrides).spaces,
    )  # fmt: skip
    assert problems == []
    expected: dict[str, Any] = {
        "[1,2]": [1, 2], "{a:'x y'}": {"a": "x y"}, "null": None, "'00:00:10:00'": "00:00:10:00",
        "'a b'": "a b", "c\\,d": "c,d",
    }  # fmt: skip

    def meant(value: Value) -> Any:
        return expected.get(value, value) if isinstance(value, str) else value

    seen = []
    for point in probe_points(space):
        plain = composer([*space.fixed, *space.to_overrides(point)])
        assert plain["trainer"]["overfit_batches"] == point["trainer.overfit_batches"]
        assert plain["mine"] == meant(point["mine"])
        assert plain["trainer"]["max_time"] == meant(point["trainer.max_time"])
        assert plain["data"]["path"] == meant(point["data.path"])
        assert plain["seed"] == point["seed"]
        assert "nesterov" not in plain["optimizer"]
        is_mine = point["network"] == "mine"
        assert plain["network"]["filters"] == (point["network.filters"] if is_mine else 32)
        assert plain["lr"] == (point["lr"] if is_mine else 0.05)
        seen.append(plain["network"]["filters"])
    assert set(seen) == {16, 32}

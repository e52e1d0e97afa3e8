"""The configuration tree: every option composes, every schema says what its target takes."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf

from lzsweep import config
from lzsweep.commands import compose_sweep
from lzsweep.errors import ConfigError, UserError
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.plugin import PullSweeper  # noqa: F401  # its schema is part of the tree
from tests.sweep.conftest import Cli, cli  # noqa: F401

CONF = config.conf_dir()
GROUPS = ("data", "network", "module", "loss", "optimizer", "schedule", "trainer", "callbacks")
OPTIONS = [
    f"{group}={path.stem}"
    for group in (*GROUPS, "logger", "hydra/sweeper/pruner", "hydra/launcher", "hydra/sweeper")
    for path in sorted((CONF / group).glob("*.yaml"))
]
NEED_A_PATH = ("data=sgf", "data=chunks")
SWEEPS = sorted(p.relative_to(CONF / "sweeps") for p in (CONF / "sweeps").rglob("*.yaml"))


@pytest.fixture(autouse=True, scope="module")
def schemas() -> None:
    config.register_schemas()


def compose(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF)):
        return hydra_compose("config", list(overrides))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option: str) -> None:
    extra = ["data.path=x"] if option in NEED_A_PATH else []
    cfg = compose(option, *extra)
    assert not option.startswith("data") or cfg.data.path


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
def test_every_ready_made_sweep_composes_and_says_what_it_asks(sweep: Path) -> None:
    cfg = compose(f"sweeps={sweep.with_suffix('')}")
    assert cfg.study.space
    header = (CONF / "sweeps" / sweep).read_text().splitlines()
    assert header[0] == "# @package _global_"
    assert any(f"lzsweep -m sweeps={sweep.with_suffix('')}" in line for line in header)


@pytest.mark.parametrize(
    ("arguments", "launcher"),
    [
        (["sweeps=demo"], "basic"),
        (["sweeps=cluster"], "slurm"),
        (["sweeps=cluster", "hydra/launcher=local"], "local"),
        (["sweeps=mine"], "local"),
        (["--config-dir", "elsewhere", "sweeps=theirs", "lr=0.1,0.2"], "slurm"),
    ],
)
def test_a_sweep_may_choose_its_launcher_and_a_command_line_another(
    work: Path, arguments: list[str], launcher: str
) -> None:
    for file, choice in (("conf/sweeps/mine", "local"), ("elsewhere/sweeps/theirs", "slurm")):
        path = work / f"{file}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(
            f"# @package _global_\ndefaults:\n  - override /hydra/launcher: {choice}\n"
        )
    assert compose_sweep(arguments).hydra.runtime.choices["hydra/launcher"] == launcher


@pytest.mark.parametrize("arguments", [["sweeps=both"], ["sweeps=cluster"]])
def test_a_commands_configs_are_found_where_hydra_finds_them(
    cli: Cli,  # noqa: F811
    work: Path,
    arguments: list[str],
) -> None:
    for file, choice in (
        ("conf/sweeps/both", "local"),
        ("elsewhere/sweeps/both", "slurm"),
        ("elsewhere/sweeps/cluster", "local"),
    ):
        path = work / f"{file}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"# @package _global_\ndefaults:\n  - override /hydra/launcher: {choice}\n"
        )
    arguments = ["--config-dir", "elsewhere", *arguments]
    choices = compose_sweep(arguments).hydra.runtime.choices
    code, out, err = cli(*arguments, "--cfg", "hydra", "--package", "hydra.runtime.choices")
    assert code == 0, err
    assert f"\nhydra/launcher: {choices['hydra/launcher']}\n" in f"\n{out}"
    with pytest.raises(
        UserError, match=r"folder of --config-dir must exist, but .*/gone does not"
    ):
        compose_sweep(["--config-dir", "gone"])


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.split("=")[0] in GROUPS])
def test_what_an_option_sets_its_target_takes(option: str) -> None:
    group = option.split("=")[0]
    cfg = compose(option, *(["data.path=x"] if option in NEED_A_PATH else []))
    node = OmegaConf.to_container(cfg[group], resolve=True)
    assert isinstance(node, dict)
    node.pop("space", None)  # taken out before anything is built
    target = node.pop("_target_", None)
    if target is None:
        return
    is_class = target.rsplit(".", 1)[1][0].isupper()
    callable_ = get_class(target) if is_class else get_method(target)
    parameters = inspect.signature(callable_).parameters
    assert set(node) - {"_partial_"} <= set(parameters)


def test_the_trainer_takes_every_argument_of_lightnings() -> None:
    from pytorch_lightning import Trainer

    ours = {f.name for f in dataclasses.fields(config.Trainer)} - {"_target_", "space"}
    assert ours == set(inspect.signature(Trainer.__init__).parameters) - {
        "self", "precision", "logger", "callbacks",  # of groups of their own
    }  # fmt: skip


def test_sizes_that_belong_to_the_data_come_from_the_data() -> None:
    cfg = compose("data.board_size=9", "data.in_channels=3")
    assert (cfg.network.board_size, cfg.network.in_channels) == (9, 3)


def test_the_root_is_open_for_additions_and_typed_for_its_own() -> None:
    assert compose("+mine=1").mine == 1
    with pytest.raises(ConfigCompositionException, match="lr=abc"):
        compose("lr=abc")


def test_composing_gives_plain_resolved_data() -> None:
    plain = Composer(config.make_loader([f"file://{CONF}"]))(["network=big", "lr=0.5"])
    assert "hydra" not in plain
    assert plain["module"]["lr"] == 0.5
    assert plain["module"]["network"]["blocks"] == 6
    assert type(plain["module"]) is dict


def test_one_or_several_objectives() -> None:
    pair = {"metric": "a", "direction": "minimize"}
    assert config.objectives(pair) == (("a",), ("minimize",))
    assert config.objectives([pair, {"metric": "b", "direction": "maximize"}]) == (
        ("a", "b"),
        ("minimize", "maximize"),
    )
    assert config.objectives({"metric": ["a", "b"], "direction": "maximize"}) == (
        ("a", "b"),
        ("maximize", "maximize"),
    )
    with pytest.raises(ConfigError, match="a direction for each metric"):
        config.objectives({"metric": ["a", "b"], "direction": ["minimize"]})
    with pytest.raises(ConfigError, match="must hold a metric and a direction"):
        config.objectives({"metric": "a"})

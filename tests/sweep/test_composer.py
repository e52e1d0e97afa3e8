from __future__ import annotations

import pytest
from hydra.errors import HydraException
from hydra.types import RunMode

from lzsweep.config import conf_dir, make_loader, resolve, take_choices
from lzsweep.sweep.composer import Composed, Composer

FIXED = ("trainer.max_epochs=3", "schedule=cosine", "+callbacks.mine={_target_: a.b}")


def test_a_trial_is_composed_as_hydra_composes_it() -> None:
    loader = make_loader([f"file://{conf_dir()}"])
    composer = Composer(loader, FIXED)
    trials: list[list[str]] = [
        [],
        ["lr=0.5"],
        ["network=tiny", "lr=0.25"],
        ["network=tiny", "network.filters=64", "~callbacks.mine"],
        ["network=big", "schedule=plateau", "schedule.factor=0.5", "trainer.max_epochs=1"],
        ["lr=0.125", "network=tiny", "+new.key=[1,2]", "++batch_size=3", "loss={value: 0.5}"],
        ["lr=0.5"],
    ]

    for overrides in trials:
        config = loader.load_configuration("config", [*FIXED, *overrides], RunMode.RUN)
        choices, spaces = take_choices(config)
        parts = composer.parts(overrides)
        assert parts == Composed(resolve(config), spaces, choices)
        assert composer(overrides) == parts.plain


def test_what_hydra_refuses_is_refused() -> None:
    composer = Composer(make_loader([f"file://{conf_dir()}"]), FIXED)
    composer(["network=tiny"])

    with pytest.raises(HydraException, match="blocs"):
        composer(["network=tiny", "network.blocs=3"])
    with pytest.raises(HydraException, match="enormous"):
        composer(["network=enormous"])

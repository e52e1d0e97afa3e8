"""Who decides in a sweep: Optuna's samplers and pruners, built from their options."""

from __future__ import annotations

from typing import Any

from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from omegaconf import DictConfig, OmegaConf


def make_sampler(node: DictConfig, seed_offset: int = 0) -> Any:
    """Optuna's sampler of a `hydra/sweeper/sampler` option.

    Args:
        node: the option.
        seed_offset: added to its seed, if it has one.
    """
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    if plain.get("warn_independent_sampling"):
        plain["warn_independent_sampling"] = False  # what a choice owns is meant to be sampled so
    if plain.get("seed") is not None:
        plain["seed"] += seed_offset
    if plain["_target_"] == "optuna.samplers.GridSampler":
        # The grid is queued, each point once; nothing is left to sample.
        return _build({"_target_": "optuna.samplers.RandomSampler"})
    return _build(plain)


def make_pruner(node: DictConfig) -> Any:
    """Optuna's pruner of a `hydra/sweeper/pruner` option."""
    return _build(OmegaConf.to_container(node, resolve=True))


def _build(node: Any) -> Any:
    # The user's own command line and configs decide what is built, as everywhere in Hydra.
    return instantiate(node, _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS)

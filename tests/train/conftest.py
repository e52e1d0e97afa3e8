"""One store of the bundled games for all tests, and configurations small enough to train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lzsweep.train.build import ensure_store
from lzsweep.train.data import GoData
from lzsweep.train.store import Store

Config = dict[str, Any]


CLOCKED = ("cost/positions_per_s", "cost/train_s")
"""Metrics that no two trainings share."""


def repeatable(metrics: dict[Any, float]) -> dict[Any, float]:
    """Metrics, by name or by name and step, without what a clock says."""
    return {
        key: value
        for key, value in metrics.items()
        if (key if isinstance(key, str) else key[0]) not in CLOCKED
    }


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
def store(cache_dir: Path) -> Store:
    return Store.open(ensure_store("bundled", cache_dir))


@pytest.fixture
def go_data(cache_dir: Path) -> Callable[..., GoData]:
    def make(**options: Any) -> GoData:
        data = GoData("bundled", cache_dir, **{"batch_size": 64, **options})
        data.setup("fit")
        return data

    return make


@pytest.fixture
def make_config(cache_dir: Path) -> Callable[..., Config]:
    """A configuration with changes, keys joined by `__`: `make_config(trainer__max_steps=5)`."""
    base: Config = {
        "seed": 1,
        "precision": "32-true",
        "objective": {"metric": "val/loss_unweighted", "direction": "minimize"},
        "data": {
            "_target_": "lzsweep.train.data.GoData",
            "path": "bundled",
            "cache_dir": str(cache_dir),
            "batch_size": 16,
            "seed": 1,
        },
        "module": {
            "_target_": "lzsweep.train.module.LeelaZero",
            "network": {"_target_": "lzsweep.train.network.Network", "blocks": 1, "filters": 4},
            "loss": {"policy": 1.0, "value": 1.0, "l2": 1e-4},
            "optimizer": {
                "_target_": "torch.optim.SGD",
                "_partial_": True,
                "momentum": 0.9,
                "nesterov": True,
            },
            "schedule": {"_target_": "lzsweep.train.schedule.plateau", "_partial_": True},
            "lr": 0.02,
        },
        "trainer": {
            "_target_": "pytorch_lightning.Trainer",
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 3,
            "limit_train_batches": 10,
            "limit_val_batches": 2,
            "limit_test_batches": 2,
            "log_every_n_steps": 4,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "callbacks": {},
        "logger": {"_target_": "lzsweep.train.logger.JournalLogger"},
    }

    def make(**changes: Any) -> Config:
        config = copy.deepcopy(base)
        for path, value in changes.items():
            *parents, last = path.split("__")
            node = config
            for parent in parents:
                node = node[parent]
            node[last] = value
        return config

    return make

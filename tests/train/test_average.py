"""Averaged weights are validated, tested, kept and exported; training goes on behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from lzsweep.errors import ConfigError
from lzsweep.train.average import Ema, Swa
from lzsweep.train.export import read_checkpoint, start_from, to_state
from lzsweep.train.fit import train
from lzsweep.train.network import Network

MakeConfig = Callable[..., dict[str, Any]]
State = Mapping[str, Tensor]
EMA = {"_target_": "lzsweep.train.average.Ema", "decay": 0.8}
SWA = {"_target_": "lzsweep.train.average.Swa", "start": 0.5, "every_n_steps": 3}


class Watch(Callback):
    """Keeps the network after each step and as it is validated and tested."""

    def __init__(self) -> None:
        self.trained: dict[int, State] = {}
        self.validated: dict[int, State] = {}
        self.tested: State = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        self.trained[trainer.global_step] = network_of(pl_module.state_dict())

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        self.validated[trainer.global_step] = network_of(pl_module.state_dict())

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        self.tested = network_of(pl_module.state_dict())


def network_of(state: State) -> State:
    return {
        name.removeprefix("network."): tensor.clone()
        for name, tensor in state.items()
        if name.startswith("network.")
    }


def saved(folder: Path, name: str = "best") -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
    return checkpoint


def assert_close(a: State, b: State) -> None:
    torch.testing.assert_close(dict(a), dict(b), rtol=1e-4, atol=1e-6)


def test_the_moving_average_is_judged_kept_and_exported(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    watch = Watch()

    train(make_config(callbacks={"ema": EMA}), folder=tmp_path, callbacks=[watch])

    # The mean and the variance of each normalisation are averaged too.
    average = {name: tensor.double() for name, tensor in watch.trained[1].items()}
    for n, step in enumerate(range(2, 31), start=1):
        decay = min(0.8, (1 + n) / (10 + n))
        for name, tensor in watch.trained[step].items():
            average[name] = decay * average[name] + (1 - decay) * tensor
        if step in watch.validated:
            assert_close(watch.validated[step], {k: v.float() for k, v in average.items()})
    checkpoint = saved(tmp_path)
    kept = network_of(checkpoint["state_dict"])
    step = checkpoint["global_step"]
    for other in (watch.validated[step], watch.tested):
        assert all(torch.equal(kept[name], other[name]) for name in kept)
    behind = network_of(checkpoint["current_model_state"])
    assert all(torch.equal(behind[name], watch.trained[step][name]) for name in behind)
    assert not torch.equal(behind["stem.conv.weight"], kept["stem.conv.weight"])
    exported = to_state(read_checkpoint(tmp_path / "checkpoints" / "best.ckpt"))
    assert_close(exported, {name: kept[name] for name in exported})
    network = Network(1, 4)
    start_from(network, tmp_path)
    assert_close(network.state_dict(), kept)


def test_the_mean_is_that_of_the_last_part(make_config: MakeConfig, tmp_path: Path) -> None:
    watch = Watch()

    train(make_config(callbacks={"swa": SWA}), folder=tmp_path, callbacks=[watch])

    # Before the average begins the network itself is judged.
    early = watch.trained[10]
    assert all(torch.equal(watch.validated[10][name], early[name]) for name in early)
    for step, steps in ((20, (15, 18)), (30, (15, 18, 21, 24, 27, 30))):
        mean = {
            name: torch.stack([watch.trained[s][name] for s in steps]).mean(0) for name in early
        }
        assert_close(watch.validated[step], mean)
    last = saved(tmp_path, "last")
    assert_close(network_of(last["state_dict"]), mean)
    assert_close(network_of(last["current_model_state"]), watch.trained[30])


def test_what_a_training_leaves_at_its_end_can_be_trained_on(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    schedule = {"_target_": "lzsweep.train.schedule.constant", "_partial_": True}
    changes = {
        "callbacks": {"ema": EMA},
        "module__schedule": schedule,
        "trainer__limit_val_batches": 0,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    watch = Watch()

    train(make_config(**changes, trainer__max_epochs=2), folder=whole)
    train(make_config(**changes, trainer__max_epochs=1), folder=parts, callbacks=[watch])
    # Without validation the test is of the average all the same.
    kept = network_of(saved(parts, "last")["state_dict"])
    assert all(torch.equal(kept[name], watch.tested[name]) for name in kept)
    train(make_config(**changes, trainer__max_epochs=2), folder=parts)

    a, b = saved(whole, "last"), saved(parts, "last")
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Ema(decay=1.0), "`0 <= decay < 1`"),
        (lambda: Ema(every_n_steps=0), "`every_n_steps >= 1`"),
        (lambda: Swa(start=1.0), "`0 <= start < 1`"),
    ],
)
def test_refuses_nonsense(make: Callable[[], Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        make()


def test_a_mean_needs_to_know_the_end(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"known number of steps.*trainer\.max_steps"):
        train(make_config(callbacks={"swa": SWA}, trainer__max_epochs=-1), folder=tmp_path)


def test_refuses_two_averages(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one average, but got Ema and Swa"):
        train(make_config(callbacks={"ema": EMA, "swa": SWA}), folder=tmp_path)

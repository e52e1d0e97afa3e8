"""Leela Zero's training as a LightningModule.

The loss is `policy * cross-entropy + value * squared error + l2 * sum(w^2) / 2`, the last over the
convolution and dense weights, as leela-zero's own training has it (tfprocess.py:340-349).
`loss_unweighted` is cross-entropy + squared error: comparable whatever the weights. Smoothed
labels, `(1 - s) * move + s / moves`, are in the loss of training alone, so that they never make a
metric that a search judges by look better or worse.

Metrics are `train/`, `val/` and `test/` + `MEANS`. Their sums stay on the device; the host
looks at them when they are logged: training's every `log_every_n_steps` and at an epoch's end,
over the steps since the last time, the others' at the end of their loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from lzsweep.config import MEANS
from lzsweep.errors import ConfigError, LzsweepError
from lzsweep.train.decode import Batch
from lzsweep.train.network import Network
from lzsweep.train.schedule import Plateau

SHOWN = ("train/loss_unweighted", "val/loss_unweighted", "val/policy_top1")  # in progress bars
STAGES = ("train", "val", "test")
LOSS_WEIGHTS = ("policy", "value", "l2")


class NonFiniteLossError(LzsweepError):
    """A loss became NaN or infinite: no result, but nothing that a retry would mend."""


class Tally(Metric):
    """Means of the `MEANS` over positions, added up on the device.

    The state is part of the module's state_dict, so that a resumed training goes on with the
    same window of steps.
    """

    full_state_update = False
    sums: Tensor  # [len(MEANS)]
    n: Tensor  # []

    def __init__(self) -> None:
        super().__init__()
        zeros = torch.zeros(len(MEANS))
        self.add_state("sums", zeros, dist_reduce_fx="sum", persistent=True)
        self.add_state("n", torch.tensor(0.0), dist_reduce_fx="sum", persistent=True)

    def update(self, values: Tensor, n: int) -> None:
        self.sums += values * n
        self.n += n

    def compute(self) -> Tensor:
        return self.sums / self.n


class LeelaZero(pl.LightningModule):
    """Trains a network.

    Args:
        network: what is trained; it maps planes to move logits and values.
        loss: weights of the parts of the loss: policy, value, l2; and, if wanted, label_smoothing.
        optimizer: builds the optimizer from the parameters and `lr`.
        schedule: builds the learning-rate schedule from the optimizer and the number of steps.
        lr: full learning rate.
        compile: compile the network with torch.compile; costs up to a minute at the first step.

    Raises:
        ConfigError: a loss weight is unknown, missing or negative, or `lr` or the smoothing is
            out of its range.
    """

    def __init__(
        self,
        network: Network,
        loss: Mapping[str, float],
        *,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer, float], LRScheduler],
        lr: float,
        compile: bool = False,
    ) -> None:
        super().__init__()
        problems = []
        weights = dict(loss)
        smoothing = weights.pop("label_smoothing", 0.0)
        if not 0 <= smoothing < 1:
            problems.append(
                f"`0 <= label_smoothing < 1` must hold for the loss, but got {smoothing}."
            )
        if set(weights) != set(LOSS_WEIGHTS) or min(weights.values()) < 0:
            problems.append(
                f"loss must give {', '.join(LOSS_WEIGHTS)}, none negative, but got {dict(loss)}."
            )
        if not 0 < lr < math.inf:
            problems.append(f"`lr > 0` must hold, but got {lr=}.")
        if problems:
            raise ConfigError(problems)
        # Both CPUs' and GPUs' fast convolutions want a point's channels side by side.
        self.network = network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()
        self.loss_weights = weights
        self.label_smoothing = smoothing
        # What Lightning's tools, and our measure of costs, call the network with.
        self.example_input_array = torch.zeros(1, *network.planes_shape())
        self.lr = lr
        self._build_optimizer = optimizer
        self._build_schedule = schedule
        self._loaded_step = 0
        self._decayed = list(network.decayed_weights())
        self.tallies = nn.ModuleDict({f"{stage}_tally": Tally() for stage in STAGES})

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate planes `[B, 18, S, S]`: move logits `[B, S*S+1]`, value `[B]`."""
        logits, value = self.network(planes)
        return logits, value

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step("test", batch)

    def _step(self, stage: str, batch: Batch) -> Tensor:
        logits, value = self.network(batch.planes)
        policy_loss = trained_loss = F.cross_entropy(logits, batch.move)
        if self.label_smoothing and stage == "train":
            trained_loss = F.cross_entropy(
                logits, batch.move, label_smoothing=self.label_smoothing
            )
        value_mse = F.mse_loss(value, batch.value)
        loss = (
            self.loss_weights["policy"] * trained_loss
            + self.loss_weights["value"] * value_mse
            + self.loss_weights["l2"] * self._half_squares()
        )
        with torch.no_grad():
            target = batch.move if batch.move.dim() == 1 else batch.move.argmax(1)
            hits = logits.topk(5, dim=1).indices == target[:, None]
            top1 = hits[:, 0].float().mean()
            top5 = hits.any(1).float().mean()
            values = (loss, policy_loss + value_mse, policy_loss, value_mse, top1, top5)
            self._tally(stage).update(torch.stack(values).detach(), len(target))
        return loss

    def _half_squares(self) -> Tensor:
        norms = torch.stack([torch.linalg.vector_norm(weight) for weight in self._decayed])
        return 0.5 * norms.square().sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by it
        step = self.global_step + 1
        if every and step % every == 0:
            self._publish("train", step)

    def on_train_epoch_end(self) -> None:
        if self._tally("train").n > 0:
            self._publish("train", self.global_step)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            self._tally("val").reset()
            return
        values = self._publish("val", self.global_step)
        schedule = self.lr_schedulers()
        if isinstance(schedule, Plateau):
            schedule.observe(values["val/loss_unweighted"])

    def on_test_epoch_end(self) -> None:
        # A test in processes of its own has taken no steps.
        self._publish("test", max(self.global_step, self._loaded_step))

    def _publish(self, stage: str, step: int) -> dict[str, float]:
        """Log the means of the tally at this number of optimizer steps, and begin it anew.

        Lightning would hand training's values to the loggers only after the batch, and count
        steps from 0. Told here, a training stopped between two batches has lost none.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        tally = self._tally(stage)
        means = tally.compute().tolist()
        tally.reset()
        values = {f"{stage}/{name}": mean for name, mean in zip(MEANS, means, strict=True)}
        for logger in self.loggers:
            logger.log_metrics(values, step)
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"{name} must be finite, but is {value} at step {step} (lr={self.lr}): "
                    "lower lr or the loss weights."
                )
            self.log(name, value, prog_bar=name in SHOWN, logger=False)
        return values

    def _tally(self, stage: str) -> Tally:
        tally = self.tallies[f"{stage}_tally"]
        assert isinstance(tally, Tally)
        return tally

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self._build_optimizer(self.parameters(), lr=self.lr)
        schedule = self._build_schedule(optimizer, self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["network"] = self.network.shape()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded_step = checkpoint["global_step"]

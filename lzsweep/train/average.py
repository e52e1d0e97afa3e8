"""Averages of a network's weights over its training, which are what is judged and kept.

Both callbacks are Lightning's `WeightAveraging` with an average of their own. Validation, the
checkpoints' `state_dict`, the test and so the weights for the engine are those of the averaged
network; `current_model_state` in a checkpoint is the network that training goes on with. The
running statistics of normalisations are averaged like the weights.
"""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lzsweep.errors import ConfigError


class Average(WeightAveraging):
    """Lightning's callback, with these differences.

    Until the average begins it is the network as it is, not the network as it was at the start;
    it lies on the device of the training; a test loads the average, not the network behind it;
    and what is written when a training ends can be trained on.

    Args:
        every_n_steps: steps between two weights that are averaged.
        options: of torch's AveragedModel.
    """

    def __init__(self, every_n_steps: int, **options: Any) -> None:
        if every_n_steps < 1:
            raise ConfigError(
                [f"`every_n_steps >= 1` must hold for an average, but got {every_n_steps}."]
            )
        super().__init__(**options)
        self._every = every_n_steps
        self._start_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average.

        Raises:
            ConfigError: there is another one.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by it
        names = [type(c).__name__ for c in callbacks if isinstance(c, WeightAveraging)]
        if len(names) > 1:
            raise ConfigError([f"a training can keep one average, but got {' and '.join(names)}."])
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        # Counted from the end of a step, so that the step at which the average starts is in it.
        return (
            step_idx is not None
            and step_idx + 1 >= self._start_step
            and (step_idx + 1 - self._start_step) % self._every == 0
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._average_model is not None
        # It was made while the network was still on the CPU.
        self._average_model.to(pl_module.device)

    def on_validation_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing yet: the last checkpoint is written after this, and training may go on there."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._follow(pl_module)
        self._copy_average_to_current(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _follow(self, pl_module: pl.LightningModule) -> None:
        average = self._average_model
        assert average is not None
        if average.n_averaged == 0:
            average.module.load_state_dict(pl_module.state_dict())


class Ema(Average):
    """Exponential moving average: old weights count less and less.

    Args:
        decay: what is left of the average after a step; at first less, `(1 + n) / (10 + n)` after
            n steps, so that a short training does not drag its start along.
        every_n_steps: steps between two weights that are averaged.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1:
            raise ConfigError([f"`0 <= decay < 1` must hold for the average, but got {decay}."])

        def average(averages: Any, currents: Any, n: Any) -> None:
            done = int(n)
            now = min(decay, (1 + done) / (10 + done))
            get_ema_multi_avg_fn(now)(averages, currents, n)  # type: ignore[no-untyped-call]

        super().__init__(every_n_steps, multi_avg_fn=average)


class Swa(Average):
    """Stochastic weight averaging: the mean of the weights of a training's last part.

    Izmailov et al., arXiv:1803.05407. The schedule stays the training's own; a rate that does
    not vanish (`schedule=constant`) gives the mean more to average.

    Args:
        start: part of the training after which averaging begins.
        every_n_steps: steps between two weights that are averaged.

    Raises:
        ConfigError: an argument is out of its range; or, when the training starts, its number of
            steps is not known.
    """

    def __init__(self, start: float = 0.75, every_n_steps: int = 1) -> None:
        if not 0 <= start < 1:
            raise ConfigError([f"`0 <= start < 1` must hold for the average, but got {start}."])
        mean = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        super().__init__(every_n_steps, multi_avg_fn=mean)
        self._start = start

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        n_steps = trainer.estimated_stepping_batches
        if math.isinf(n_steps):
            raise ConfigError(
                [
                    "The swa callback needs a known number of steps, but this training has no"
                    " end: set trainer.max_steps or trainer.max_epochs."
                ]
            )
        self._start_step = max(1, math.ceil(self._start * n_steps))

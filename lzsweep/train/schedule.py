"""Learning-rate schedules: builders that take an optimizer and the number of steps to come.

A configuration names one with `_partial_: true` and sets its keyword arguments; the module calls
it with the optimizer and the number of steps. All of them are stepped after every training step.
"""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from lzsweep.errors import ConfigError


class Plateau(LRScheduler):
    """Lowers the learning rate when a value that should fall has stopped falling.

    `step` is called after each training step (for the warm-up), `observe` after each validation.

    Args:
        optimizer: whose learning rates are set.
        warmup_steps: steps over which the rate rises linearly to its full value.
        factor: what the rate is multiplied by, in 0..1.
        patience: validations without a new best that are forgiven before each cut.
        threshold: by what part of the best a value must be lower to count as a new best.
        min_factor: the rate never falls below this part of its full value.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int,
        factor: float,
        patience: int,
        threshold: float,
        min_factor: float,
    ) -> None:
        self.warmup_steps = warmup_steps
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.min_factor = min_factor
        self.scale = 1.0
        self.best = math.inf
        self.n_bad = 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Any]:
        scale = self.scale * _warmup(self.last_epoch, self.warmup_steps)
        return [scale * lr for lr in self.base_lrs]

    def observe(self, value: float) -> None:
        if value < self.best - abs(self.best) * self.threshold or self.best == math.inf:
            self.best = value
            self.n_bad = 0
            return
        self.n_bad += 1
        if self.n_bad > self.patience:
            self.scale = max(self.scale * self.factor, self.min_factor)
            self.n_bad = 0


def plateau(
    optimizer: Optimizer,
    n_steps: float,
    *,
    warmup_steps: int = 0,
    factor: float = 0.3,
    patience: int = 2,
    threshold: float = 1e-3,
    min_factor: float = 1e-3,
) -> Plateau:
    """Cut the rate when `val/loss_unweighted` stops falling; see `Plateau`."""
    del n_steps  # this schedule looks at the loss, not at the time left
    if not 0 < factor < 1 or patience < 0 or warmup_steps < 0:
        raise ConfigError(
            [
                "`0 < factor < 1`, `patience >= 0` and `warmup_steps >= 0` must hold for the "
                f"schedule, but got {factor=}, {patience=}, {warmup_steps=}."
            ]
        )
    return Plateau(
        optimizer,
        warmup_steps=warmup_steps,
        factor=factor,
        patience=patience,
        threshold=threshold,
        min_factor=min_factor,
    )


def cosine(
    optimizer: Optimizer, n_steps: float, *, warmup_steps: int = 0, min_factor: float = 0.0
) -> LambdaLR:
    """Let the rate fall along half a cosine to `min_factor` of its full value at the last step.

    Raises:
        ConfigError: the length of the training is not known, or shorter than the warm-up, or that
            is negative.
    """
    problems = _warmup_problems(warmup_steps)
    if math.isinf(n_steps) or n_steps <= warmup_steps:
        problems.append(
            "The cosine schedule needs a known number of steps above `warmup_steps`, but got "
            f"{n_steps=}, {warmup_steps=}: set trainer.max_steps or trainer.max_epochs."
        )
    if problems:
        raise ConfigError(problems)

    def scale(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps)
        done = min(1.0, (step - warmup_steps) / (n_steps - warmup_steps))
        return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, scale)


def one_cycle(
    optimizer: Optimizer,
    n_steps: float,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    cycle_momentum: bool = True,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
) -> OneCycleLR:
    """Raise the rate to its full value and let it fall to almost nothing at the last step.

    The arguments are those of torch's OneCycleLR (Smith and Topin, arXiv:1708.07120): it starts
    at the full rate / `div_factor` and ends at the start's / `final_div_factor`, both along half
    a cosine; the momentum, or Adam's first beta, goes the other way, from `max_momentum` to
    `base_momentum` and back. An optimizer without momentum keeps none.

    Raises:
        ConfigError: the length of the training is not known or its rise takes no step, or an
            argument is out of its range.
    """
    problems = []
    if not (0 < pct_start < 1 and div_factor >= 1 and final_div_factor >= 1):
        problems.append(
            "`0 < pct_start < 1`, `div_factor >= 1` and `final_div_factor >= 1` must hold for the"
            f" schedule, but got {pct_start=}, {div_factor=}, {final_div_factor=}."
        )
    elif math.isinf(n_steps) or n_steps * pct_start < 1:
        problems.append(
            "The one_cycle schedule needs a known number of steps, and one or more of them for"
            f" its rise, but got {n_steps=}, {pct_start=}: set trainer.max_steps or"
            " trainer.max_epochs."
        )
    if not 0 <= base_momentum <= max_momentum < 1:
        problems.append(
            "`0 <= base_momentum <= max_momentum < 1` must hold for the schedule, but got"
            f" {base_momentum=}, {max_momentum=}."
        )
    if problems:
        raise ConfigError(problems)
    full = optimizer.defaults["lr"]
    has_momentum = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0
    return OneCycleLR(
        optimizer,
        max_lr=full,
        total_steps=int(n_steps) + 1,  # the lowest rate is what the last step leaves
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=cycle_momentum and has_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )


def constant(optimizer: Optimizer, n_steps: float, *, warmup_steps: int = 0) -> LambdaLR:
    """Keep the rate, after a linear warm-up.

    Raises:
        ConfigError: the warm-up is negative.
    """
    del n_steps
    if problems := _warmup_problems(warmup_steps):
        raise ConfigError(problems)
    return LambdaLR(optimizer, lambda step: _warmup(step, warmup_steps))


def _warmup_problems(warmup_steps: int) -> list[str]:
    if warmup_steps >= 0:
        return []
    return [f"`warmup_steps >= 0` must hold for the schedule, but got {warmup_steps=}."]


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / (warmup_steps + 1))

"""What a network costs: its size, its arithmetic, its speed and the time to train it.

The `cost/` metrics are logged beside the others and may be objectives:

    cost/parameters       learned numbers
    cost/flops            floating-point operations of one evaluation of one position; a multiply
                          and an add are two, and only matrix products and convolutions count
                          (torch.utils.flop_counter)
    cost/positions_per_s  evaluations a second, in batches, in the training's precision, on its
                          device, not compiled; measured once, before the training
    cost/train_s          seconds of training so far, validations included; a resumed training
                          counts on from its checkpoint

The middle two need the module's `example_input_array`: a batch, positions first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lzsweep.config import COSTS
from lzsweep.errors import ConfigError
from lzsweep.imports import has_compiler

BATCH = 256
"""Positions evaluated at a time where that is quick."""

MEASURING_S = 0.05
"""Time spent on measuring the speed; a network so slow that one position takes longer, more."""


class Cost(Callback):
    """Logs the `cost/` metrics at each validation, and at each epoch's end that has none.

    Args:
        objectives: names of metrics that are judged by.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self._objectives = tuple(objectives)
        self._constants: dict[str, float] = {}
        self._began = 0.0  # on the clock that stands at 0 when the first attempt begins
        self._train_s = 0.0
        self._logged_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure.

        Raises:
            ConfigError: an objective is a cost that this module does not let us measure.
        """
        if not self._constants:
            self._constants = self._measure(trainer, pl_module)
        known = {*self._constants, "cost/train_s"}
        if missing := [name for name in self._objectives if name in COSTS and name not in known]:
            raise ConfigError(
                [
                    f"{', '.join(missing)} is measured with the module's example_input_array, but"
                    f" {type(pl_module).__qualname__} has none: set it to a batch, or choose"
                    " another objective.metric"
                ]
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic() - self._train_s

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "constants": self._constants,
            # Checkpoints between two validations too.
            "train_s": time.monotonic() - self._began if self._began else self._train_s,
            "logged_step": self._logged_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._constants = state_dict["constants"]
        self._train_s = state_dict["train_s"]
        self._logged_step = state_dict["logged_step"]

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_s = time.monotonic() - self._began
        step = trainer.global_step
        values = {**self._constants, "cost/train_s": self._train_s}
        for name, value in values.items():
            pl_module.log(name, value, logger=False)
        if step == self._logged_step:
            return
        news = values if self._logged_step < 0 else {"cost/train_s": self._train_s}
        self._logged_step = step
        for logger in trainer.loggers:
            logger.log_metrics(news, step)

    def _measure(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        n_parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        costs = {"cost/parameters": float(n_parameters)}
        example = module.example_input_array
        if example is None:
            return costs
        device, plugin = trainer.strategy.root_device, trainer.precision_plugin

        def evaluate(n: int) -> Callable[[], Any]:
            args, kwargs = plugin.convert_input(_resize(example, n, device))
            return lambda: module(*args, **kwargs)

        training = [part for part in module.modules() if part.training]
        module.eval()
        try:
            # Compiled parts run as they were written: to compile them would take a minute.
            stance = torch.compiler.set_stance("force_eager") if has_compiler() else nullcontext()
            with isolate_rng(), torch.no_grad(), stance, plugin.forward_context():
                costs["cost/flops"] = count_flops(evaluate(1))
                costs["cost/positions_per_s"] = _speed(evaluate, device)
        finally:
            for part in training:
                part.training = True
        return costs


def count_flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def _resize(example: Any, n: int, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of `forward`: the first position of the example, n times."""
    is_many = isinstance(example, list | tuple)
    args = [] if isinstance(example, dict) else list(example) if is_many else [example]
    kwargs = example if isinstance(example, dict) else {}

    def resize(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value[:1].to(device).repeat(n, *[1] * (value.dim() - 1))

    return [resize(value) for value in args], {k: resize(v) for k, v in kwargs.items()}


def _speed(evaluate: Callable[[int], Callable[[], Any]], device: torch.device) -> float:
    """Positions a second, in batches of as many as fit the time, `BATCH` at most."""

    def seconds(run: Callable[[], Any]) -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    one = evaluate(1)
    seconds(one)  # the first run sets up what later ones share
    fitting = MEASURING_S / 4 / max(seconds(one), 1e-9)
    n = BATCH if device.type == "cuda" else max(1, min(BATCH, int(fitting)))
    run = evaluate(n)
    seconds(run)
    times = [seconds(run)]
    while sum(times) < MEASURING_S / 2:
        times.append(seconds(run))
    return n / min(times)

"""The Lightning callback of a trial: reports at each rung and does as the worker says.

A rung is so much of a resource: epochs, optimizer steps, positions or seconds of training. What
is reported at a rung is what was known when it was reached, the last validation's values; so
trials are compared at the same cost, whenever each of them validates. A rung that was reached
before the first validation is not reported.

Of a trial on several devices rank 0 talks to the worker, and all do what it hears.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loops.progress import _ProcessedTracker
from pytorch_lightning.utilities.data import extract_batch_size

from lzsweep.sweep.trial import (
    Link,
    Pruned,
    Report,
    Resource,
    Stopped,
    check_finite,
    ignore_signals,
)
from lzsweep.train.checkpoint import Checkpoints

_ROUNDING = 1e-9  # of epochs, which are fractions

_logger = logging.getLogger(__name__)


class Reporter(Callback):
    """Knows the objectives by name; the worker at the other end of the pipe decides.

    Args:
        metrics: the objectives.
        link: to the worker.
        resource: what is counted.
        rung: how much of it lies between two reports.
    """

    def __init__(
        self, metrics: Sequence[str], link: Link, resource: Resource = "epochs", rung: float = 1.0
    ) -> None:
        self._metrics = tuple(metrics)
        self._link = link
        self._resource = resource
        self._rung = rung
        self._n_reached = 0
        self._values: tuple[float, ...] | None = None
        self._n_positions = 0
        self._seconds = 0.0  # of earlier attempts
        self._began = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ignore_signals()  # Lightning has just taken SIGTERM
        self._began = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ignore_signals()

    def state_dict(self) -> dict[str, Any]:
        return {
            "n_reached": self._n_reached,
            "values": self._values,
            "n_positions": self._n_positions,
            "seconds": self._spent_seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._n_reached = state_dict["n_reached"]
        self._values = state_dict["values"]
        self._n_positions = state_dict["n_positions"]
        self._seconds = state_dict["seconds"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = trainer.callback_metrics
        if trainer.sanity_checking:
            return
        rungs = self._spent(trainer) / self._rung
        self._report(trainer, math.ceil(rungs - _ROUNDING) - 1)  # these did not know it yet
        if not all(m in logged for m in self._metrics):
            return  # an objective that only the end will tell
        values = tuple(float(logged[m]) for m in self._metrics)
        self._values = check_finite(self._metrics, values)
        shown = " ".join(f"{m}={v:.4f}" for m, v in zip(self._metrics, values, strict=True))
        _logger.info("epoch %d, step %d: %s", trainer.current_epoch, trainer.global_step, shown)
        self._report(trainer, math.floor(rungs + _ROUNDING))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._report(trainer, math.floor(self._spent(trainer) / self._rung + _ROUNDING))
        self._stop_where_resuming_is_exact(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self._resource == "positions":
            self._n_positions += extract_batch_size(batch) * trainer.world_size
        self._stop_where_resuming_is_exact(trainer)

    def _report(self, trainer: Trainer, n_rungs: int) -> None:
        """Report the rungs up to this one, those that were not reported yet."""
        if self._resource == "seconds":  # no two devices have the same clock
            n_rungs = trainer.strategy.broadcast(n_rungs)
        while self._n_reached < n_rungs:
            self._n_reached += 1
            if self._values is None:
                continue
            report = Report(self._n_reached, self._values)
            word = self._link.ask(report) if trainer.is_global_zero else None
            if trainer.strategy.broadcast(word) == "prune":
                raise Pruned

    def _spent(self, trainer: Trainer) -> float:
        if self._resource == "steps":
            return trainer.global_step
        if self._resource == "positions":
            return self._n_positions
        if self._resource == "seconds":
            return self._spent_seconds()
        batches = trainer.fit_loop.epoch_loop.batch_progress
        now, n_batches = batches.current, trainer.num_training_batches
        assert isinstance(now, _ProcessedTracker)
        if math.isinf(n_batches):  # data of unknown length: whole epochs are known, at their end
            return trainer.current_epoch + (batches.is_last_batch and now.ready == now.processed)
        return trainer.current_epoch + now.processed / n_batches

    def _spent_seconds(self) -> float:
        return self._seconds + time.monotonic() - self._began

    def _stop_where_resuming_is_exact(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._link.stopping, all=False):
            checkpoints = trainer.checkpoint_callback
            assert isinstance(checkpoints, Checkpoints)
            if checkpoints.save_last(trainer):
                # Lightning logs a step's metrics after its callbacks, and will not come to that.
                trainer._logger_connector.update_train_step_metrics()
                raise Stopped

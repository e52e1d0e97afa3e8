"""The Lightning callback of a trial: reports each validation and does as the worker says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lzsweep.sweep.trial import Link, Pruned, Report, Stopped, ignore_signals
from lzsweep.train.checkpoint import Checkpoints

_logger = logging.getLogger(__name__)


class Judge(Callback):
    """Knows the objectives by name; the worker at the other end of the pipe decides."""

    def __init__(self, metrics: Sequence[str], link: Link) -> None:
        self._metrics = tuple(metrics)
        self._link = link
        self._n_validations = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ignore_signals()  # Lightning has just taken SIGTERM

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ignore_signals()

    def state_dict(self) -> dict[str, Any]:
        return {"n_validations": self._n_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._n_validations = state_dict["n_validations"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = trainer.callback_metrics
        if trainer.sanity_checking:
            return
        self._n_validations += 1
        if not all(m in logged for m in self._metrics):
            return  # an objective that only the end will tell
        values = tuple(float(logged[m]) for m in self._metrics)
        shown = " ".join(f"{m}={v:.4f}" for m, v in zip(self._metrics, values, strict=True))
        _logger.info("epoch %d, step %d: %s", trainer.current_epoch, trainer.global_step, shown)
        if self._link.ask(Report(self._n_validations, values)) == "prune":
            raise Pruned

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._stop_where_resuming_is_exact(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._stop_where_resuming_is_exact(trainer)

    def _stop_where_resuming_is_exact(self, trainer: Trainer) -> None:
        if self._link.stopping:
            checkpoints = trainer.checkpoint_callback
            assert isinstance(checkpoints, Checkpoints)
            if checkpoints.save_last(trainer):
                raise Stopped

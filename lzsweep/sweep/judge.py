"""The Lightning callback of a trial: reports each validation and does as the worker says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lzsweep.errors import UserError
from lzsweep.sweep.trial import Link, Pruned, Report, Stopped


class Judge(Callback):
    """Keeps the objectives of the best validation, the one whose checkpoint is delivered.

    The first objective decides which validation is best. What was best goes into the checkpoint,
    so that a resumed trial does not forget it.
    """

    def __init__(self, metrics: Sequence[str], directions: Sequence[str], link: Link) -> None:
        self._metrics = tuple(metrics)
        self._sign = 1 if directions[0] == "minimize" else -1
        self._link = link
        self._best: tuple[float, ...] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = self._read(trainer.callback_metrics)
        if values is None:
            return
        if self._best is None or self._sign * values[0] < self._sign * self._best[0]:
            self._best = values
        word = self._link.ask(Report(trainer.current_epoch + 1, values))
        if word == "prune":
            raise Pruned

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._link.stopping:
            raise Stopped

    def objective(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The objectives at the end of training.

        Args:
            metrics: all metrics that training and testing left.

        Raises:
            UserError: an objective was never logged.
        """
        if missing := [m for m in self._metrics if m not in metrics]:
            raise UserError(
                f"an objective must be logged by the module, but {', '.join(missing)} never was;"
                f" logged: {', '.join(sorted(metrics))}; set objective.metric"
            )
        return self._best or tuple(metrics[m] for m in self._metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def _read(self, metrics: Mapping[str, Any]) -> tuple[float, ...] | None:
        if not all(m in metrics for m in self._metrics):
            return None  # not an objective of validation: known only at the end
        return tuple(float(metrics[m]) for m in self._metrics)

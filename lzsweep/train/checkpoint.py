"""Checkpoints of a training: the last state and the best one, never half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loops.progress import _ProcessedTracker

from lzsweep.config import BEST_CHECKPOINT, LAST_CHECKPOINT
from lzsweep.files import lend_whole


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` at the end of every validation and of training, `best.ckpt` with it.

    Lightning's own ModelCheckpoint writes `last` only when there is a new best, so a training
    could not resume from its last validation. A checkpoint is written aside and renamed; best is
    a second name of the same file where the file system has hard links. It is best by the first
    objective; training that never validates has only a last one.

    Args:
        folder: the run's folder.
        metric: decides what is best.
        direction: "minimize" or "maximize".
    """

    def __init__(self, folder: Path, metric: str, direction: str) -> None:
        self.last = folder / LAST_CHECKPOINT
        self.best = folder / BEST_CHECKPOINT
        self._metric = metric
        self._sign = -1 if direction == "maximize" else 1
        self._best_value: float | None = None
        self._saved_step = -1
        self._metrics: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self._metric)
        better = value is not None and self._is_better(float(value))
        if value is not None and better:
            self._best_value = float(value)
        self._save(trainer, better=better)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer, better=False)

    def save_last(self, trainer: Trainer) -> bool:
        """Write `last.ckpt` if the training can resume right here; else try at the next batch.

        For callbacks, at the start or the end of a training batch.

        Returns:
            Whether the last checkpoint now holds this step. It cannot while a batch or a sum of
            gradients is half done, nor before a validation that is due: that one writes it anyway.
        """
        if trainer.global_step == self._saved_step:
            return True
        fit = trainer.fit_loop
        batches = fit.epoch_loop.batch_progress
        now = batches.current
        assert isinstance(now, _ProcessedTracker)
        assert fit._data_fetcher is not None
        half_done = now.ready != now.processed or fit._should_accumulate()
        validates = fit.epoch_loop._should_check_val_fx(fit._data_fetcher)
        if half_done or validates or batches.is_last_batch:
            return False
        self._save(trainer, better=False)
        return True

    def _is_better(self, value: float) -> bool:
        return self._best_value is None or self._sign * value < self._sign * self._best_value

    def _save(self, trainer: Trainer, *, better: bool) -> None:
        aside = self.last.with_suffix(".partial")
        self._saved_step = trainer.global_step
        self._metrics |= {name: float(v) for name, v in trainer.callback_metrics.items()}
        try:
            trainer.save_checkpoint(aside, weights_only=False)
        except BaseException as error:
            aside.unlink(missing_ok=True)  # a full disk has no room for half a checkpoint
            if isinstance(error, OSError) and error.errno:  # it does not say which file
                raise OSError(error.errno, error.strerror, str(aside)) from error
            raise
        if trainer.is_global_zero:
            self._rename(aside, better=better)
        trainer.strategy.barrier()  # so that no other device looks for it sooner

    def _rename(self, aside: Path, *, better: bool) -> None:
        # Best first: a last that knows of a best must not be there without it.
        if better:
            lend_whole(aside, self.best)
        aside.replace(self.last)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_value": self._best_value,
            "saved_step": self._saved_step,
            "metrics": self._metrics,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best_value = state_dict["best_value"]
        self._saved_step = state_dict["saved_step"]
        self._metrics = state_dict["metrics"]

    def resume_path(self) -> Path | None:
        """Where an earlier attempt of this training left off."""
        return self.last if self.last.exists() else None

    def best_path(self) -> Path | None:
        """The best checkpoint; None if there was no validation with the metric."""
        # The file tells, for with several devices this object lived in other processes.
        return self.best if self.best.exists() else None

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """All metrics as they stood at the best checkpoint, or now if there is none."""
        now = {name: float(value) for name, value in trainer.callback_metrics.items()}
        path = self.best_path()
        if path is None:
            return self._metrics | now
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        best: dict[str, float] = checkpoint["callbacks"][self.state_key]["metrics"]
        return self._metrics | now | best

"""Keeps Lightning's advertisements and known needless warnings out of the output."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The loggers of Lightning's own messages to people.
_LOGGERS = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero")
_NEEDLESS_MESSAGES = (
    "💡 Tip",
    "GPU available",
    "TPU available",
    "HPU available",
    "Loading `train_dataloader` to estimate",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loading model weights from",
    "Loaded model weights from",
    "Found current_model_state in the checkpoint",
)
_NEEDLESS_WARNINGS = (
    # Lightning uses what its own torch deprecates.
    r".*isinstance\(treespec, LeafSpec\)",
    # A machine of a cluster on which nobody asked for a job.
    r".*The `srun` command is available on your system but is not used",
    # The size in the summary, not ours to mend.
    r".*is not supported by the model summary",
    # Short trainings are no mistake, and an epoch's end logs too.
    r".*is smaller than the logging interval",
    # What is logged is the same on every device already.
    r"It is recommended to use `self.log\(.*, sync_dist=True\)`",
    # A resumed training's sums come from the checkpoint.
    r".*``compute`` method of metric Tally was called before the ``update``",
    # The schedule is stepped in the right order; Lightning's gradient scaler confuses torch.
    r".*Detected call of `lr_scheduler.step\(\)` before",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out these messages and warnings, and only these, until the end of the block."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_needed)
    try:
        with warnings.catch_warnings():
            for pattern in _NEEDLESS_WARNINGS:
                warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_needed)


def _is_needed(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NEEDLESS_MESSAGES)

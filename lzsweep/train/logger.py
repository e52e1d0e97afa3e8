"""Lightning's metrics into the run's journal, from where they are delivered to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from lzsweep.tracking.journal import Journal


class JournalLogger(Logger):
    """Appends metrics to the journal of a run that somebody else starts and ends.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: Path | str) -> None:
        super().__init__()
        self._folder = Path(save_dir)
        self._journal: Journal | None = None

    @property
    def name(self) -> str:
        return "journal"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the params of a run are recorded by who starts it."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._journal is None:
            self._journal = Journal(self._folder)
        self._journal.metrics(step or 0, metrics)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

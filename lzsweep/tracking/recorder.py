"""The recorder of a process's runs: their journals, the delivery of these, system metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lzsweep.files import write_whole
from lzsweep.tracking.client import redact
from lzsweep.tracking.delivery import Sender
from lzsweep.tracking.journal import Journal, Status
from lzsweep.tracking.runs import code_version
from lzsweep.tracking.system import SystemSampler

CONFIG_NAME = "config.yaml"
DELIVERY_S = 60.0
"""Time MLflow is given at the end before the rest is left to `lzsweep sync`."""

_logger = logging.getLogger(__name__)


class Recorder:
    """Records runs, each in its folder; any thread may start and end one.

    A full disk or a lost server costs the record, never the training: what cannot be written is
    warned of, what cannot be delivered waits in the journal.

    Args:
        uri: the MLflow server.
        experiment: where the runs belong.
        system_metrics_s: seconds between two samples of CPU, memory and GPU; 0 for none.
    """

    def __init__(self, uri: str, experiment: str, system_metrics_s: float) -> None:
        self._experiment = experiment
        self._system_metrics_s = system_metrics_s
        self._sender = Sender(uri)
        self._owed: list[Callable[[], None]] = []  # ends of runs that a full disk did not take
        self._sampler = SystemSampler(interval_s=system_metrics_s or 10.0)

    def start(
        self,
        folder: Path,
        *,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        config: str,
        parent_folder: Path | None = None,
    ) -> None:
        """Begin the run of a folder, or take it up again.

        Args:
            folder: of the run.
            name: in MLflow.
            params: what is compared.
            tags: besides those that say which code ran where.
            config: the resolved configuration as YAML; that of the first attempt is kept.
            parent_folder: of the run above this one, whose id may not be known yet.

        Raises:
            OSError: the folder cannot be written, so nothing could be trained in it either.
        """
        with Journal(folder) as journal:
            if journal.status is None or not (folder / CONFIG_NAME).exists():
                # Before the start, which is what tells the next attempt that all this was done.
                write_whole(folder / CONFIG_NAME, redact(config).encode())
            journal.start(
                experiment=self._experiment,
                name=name,
                params=params,
                tags={**code_version(), **tags, "lzsweep.folder": str(folder)},
                parent_folder=parent_folder,
            )
            journal.artifact(CONFIG_NAME)  # once more does no harm, and may be the first time
        self._sender.add(folder)

    def watch(
        self, folder: Path, *, pid: int | None = None, devices: Sequence[str] | None = None
    ) -> None:
        """Sample system metrics into the run: of a process (this one) and of GPUs."""
        if self._system_metrics_s:
            self._sampler.add(folder, pid=pid, devices=devices)

    def unwatch(self, folder: Path) -> None:
        self._sampler.remove(folder)

    def end(
        self,
        folder: Path,
        status: Status,
        *,
        tags: Mapping[str, str] | None = None,
        artifacts: Mapping[str, str] | None = None,
    ) -> None:
        """End the run of a folder.

        Args:
            folder: of the run.
            status: as MLflow knows it.
            tags: the last ones.
            artifacts: files in the folder -> where they go among the run's artifacts; one that is
                not there is left out.
        """
        self.unwatch(folder)

        def note() -> None:
            with Journal(folder) as journal:
                if journal.status is None:
                    return  # it could not even begin
                for path, target in (artifacts or {}).items():
                    if (folder / path).exists():
                        journal.artifact(path, target)
                if tags:
                    journal.tags(tags)
                journal.end(status)
            self._sender.add(folder)

        self._note(folder, note)

    def keep(self, folder: Path, path: str) -> None:
        """Add a file of a folder to the artifacts of its run, which may have ended."""

        def note() -> None:
            with Journal(folder) as journal:
                if journal.status is not None:
                    journal.artifact(path)
            self._sender.add(folder)

        self._note(folder, note)

    def _note(self, folder: Path, note: Callable[[], None]) -> None:
        try:
            note()
        except OSError as error:
            _logger.warning("the end of the run in %s cannot be noted yet: %s", folder, error)
            self._owed.append(note)

    def close(self, timeout_s: float = DELIVERY_S) -> None:
        """Deliver what is left, for a limited time, and say what `lzsweep sync` will have to."""
        self._sampler.close()
        for note in self._owed:
            try:
                note()
            except OSError as error:
                _logger.warning(
                    "the end of a run was not noted: %s; make room there and type the same"
                    " command again",
                    error,
                )
        if undelivered := self._sender.close(timeout_s):
            _logger.warning(
                "MLflow did not take everything of %d runs; deliver it with `lzsweep sync`",
                len(undelivered),
            )


def has_recorder(logger: Mapping[str, object] | None) -> bool:
    """Whether a `logger` node is ours, which writes into the journal."""
    return str((logger or {}).get("_target_")).endswith(".JournalLogger")

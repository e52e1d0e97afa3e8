"""The networks that trials leave for the engine, written beside whatever trains next.

A network as text takes the engine's file a tenth of a second, a large one half a minute. So a
trial's process ends without it, its device is free, and another process, which touches no device,
reads the best checkpoint. Whoever dies in between leaves a trial that has everything else; the
last worker of the study publishes what is missing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from threading import Event

from lzsweep.config import BEST_CHECKPOINT, LAST_CHECKPOINT, WEIGHTS_FILE
from lzsweep.sweep.forkserver import process_lock
from lzsweep.sweep.output import take_over_output
from lzsweep.sweep.trial import LOG_NAME, die_with_forkserver

PUBLISH_S = 600.0
"""Time that a process has for the networks it was given, ..."""
STOPPING_S = 10.0
"""... and from its start if the worker is to end."""
LOOK_S = 0.5
"""Time between two looks at whether the worker is to end."""

_logger = logging.getLogger(__name__)


class Publisher:
    """Publishes the networks of trials in the background, as many at once as there are slots.

    Args:
        n_slots: of the worker.
        is_stopping: set when the worker is to end soon; what is not begun by then is left.
        when_done: told the folder of each network that was published.
    """

    def __init__(
        self, n_slots: int, is_stopping: Event, when_done: Callable[[Path], object]
    ) -> None:
        self._pool = ThreadPoolExecutor(n_slots, thread_name_prefix="publisher")
        self._is_stopping = is_stopping
        self._when_done = when_done
        self._taken: set[Path] = set()

    def add(self, folder: Path) -> None:
        """Publish the network of a trial that has ended; returns at once."""
        self._taken.add(folder)
        self._pool.submit(self._publish, [folder], self._is_stopping.is_set)

    def add_missing(self, folders: Iterable[Path]) -> None:
        """Publish what others, or this worker on an earlier day, did not come to."""
        missing = [
            folder
            for folder in folders
            if folder not in self._taken and not (folder / WEIGHTS_FILE).exists()
        ]
        self._pool.submit(self._publish, missing, lambda: False)

    def close(self) -> None:
        """Wait for what was begun."""
        self._pool.shutdown()

    def _publish(self, folders: Sequence[Path], is_stopping: Callable[[], bool]) -> None:
        if is_stopping():
            return
        try:
            publish_networks(folders, is_stopping)
            for folder in folders:
                if (folder / WEIGHTS_FILE).exists():
                    self._when_done(folder)
        except Exception:  # nobody waits for the result, and no trial is lost over it
            _logger.exception("the networks of some trials were not published")


def publish_networks(
    folders: Iterable[Path], is_stopping: Callable[[], bool] = lambda: False
) -> None:
    """Write the best networks of trials for the engine, in a process that has torch.

    Nothing is raised where that is not possible: the trial's log says why.
    """
    trained = [
        folder
        for folder in folders
        if any((folder / name).exists() for name in (BEST_CHECKPOINT, LAST_CHECKPOINT))
    ]
    if not trained:
        return
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_publish_all, args=(trained,), name="publisher")
    try:
        with process_lock:
            process.start()
    except OSError as error:  # no room for a process more
        _logger.warning("no weights for the engine of %s: %s", trained[0], error)
        return
    began = time.monotonic()
    while not wait([process.sentinel], LOOK_S):
        if time.monotonic() - began > (STOPPING_S if is_stopping() else PUBLISH_S):
            break
    with process_lock:
        process.kill()
        process.join()


def _publish_all(folders: Sequence[Path]) -> None:
    from lzsweep.train.export import publish  # the forkserver has imported it

    die_with_forkserver()
    os.nice(5)  # the trials come first
    for folder in folders:
        try:
            take_over_output(folder / LOG_NAME)
            publish(folder)
        except Exception as error:  # want of memory, say, which ended the training as well
            with suppress(OSError):
                print(f"no weights for the engine: {error}", flush=True)

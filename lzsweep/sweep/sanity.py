"""One batch before any trial: whether a module that is not ours logs what it is judged by.

What our own module logs is known, and the command refuses any other objective. What another logs
nobody knows before it runs, and a misspelt objective would be found at the end of each trial. So
one worker of a study has a trial's process train one batch, in a folder that is no trial's. The
others wait for the verdict, but not for ever: without one, the trials tell.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from lzsweep.config import is_shipped, objectives_of
from lzsweep.errors import UserError
from lzsweep.sweep.attempt import Attempts
from lzsweep.sweep.slots import Slot
from lzsweep.sweep.space import Space
from lzsweep.sweep.storage import patiently
from lzsweep.sweep.study import Study
from lzsweep.sweep.syntax import probe_points
from lzsweep.sweep.trial import End, Spec, Word

LOOK_S = (0.5, 1.0)
"""Time between two looks at whether another worker has its verdict, drawn anew each time."""
WAIT_S = 120.0
"""Time after which a worker goes on without it; who was to tell may be on a machine that died."""

_logger = logging.getLogger(__name__)


def find_strangers(
    first: Mapping[str, Any], space: Space, compose: Callable[[Sequence[str]], dict[str, Any]]
) -> list[Mapping[str, Any]]:
    """A configuration for each module that is trained and is not ours.

    Args:
        first: the configuration of the first point.
        space: what is searched, which may be the module itself.
        compose: makes a configuration of overrides.
    """
    configs = [first]
    if any(p.key in ("module", "module._target_") for p in space.parameters):
        configs += [compose(space.to_overrides(point)) for point in probe_points(space)]
    modules = {str(c["module"].get("_target_")): c for c in reversed(configs)}
    return [config for config in modules.values() if not is_shipped(config["module"])]


class Sanity:
    """The one batch, for the slots of one worker; costs nothing where no module is a stranger.

    Args:
        study: that is stopped if an objective is not logged.
        strangers: configurations whose modules are not ours.
        stopping: whether the worker is to end; it is if the study is stopped here.
    """

    def __init__(
        self, study: Study, strangers: Sequence[Mapping[str, Any]], stopping: threading.Event
    ) -> None:
        self._study = study
        self._strangers = strangers
        self._stopping = stopping
        self._lock = threading.Lock()

    def settle(self, attempts: Attempts, slot: Slot) -> None:
        """Return once trials may begin, or the worker is to end.

        Args:
            attempts: of the slot, whose process it takes.
            slot: where the batch may be trained.
        """
        if not self._strangers:
            return
        with self._lock:
            if self._strangers and self._is_mine():
                self._judge(attempts, slot)
            self._strangers = []

    def _is_mine(self) -> bool:
        give_up = time.monotonic() + WAIT_S
        while not self._stopping.is_set() and time.monotonic() < give_up:
            is_mine = patiently(self._study.take_sanity)
            if is_mine is not None:
                return is_mine
            self._stopping.wait(random.uniform(*LOOK_S))
        return False

    def _judge(self, attempts: Attempts, slot: Slot) -> None:
        metrics = self._study.record.metrics
        is_over = False
        try:
            for config in self._strangers:
                module = config["module"].get("_target_")
                end = self._train(config, attempts, slot)
                if self._stopping.is_set():
                    return
                if end.kind != "complete":
                    _logger.warning(
                        "the first batch of %s, trained to see what it logs, ended: %s; trials"
                        " begin all the same",
                        module,
                        end.reason,
                    )
                    continue
                try:
                    objectives_of(end.metrics or {}, metrics)
                except UserError as error:
                    # In this order the worker says no more than what the study was stopped for.
                    self._stopping.set()
                    patiently(
                        self._study.stop,
                        f"{error}, or worker.sanity=false if it is logged later than in the first"
                        f" batch of {module}, which was trained before any trial",
                    )
                    return
            is_over = True
        finally:
            patiently(self._study.end_sanity, is_over=is_over)

    def _train(self, config: Mapping[str, Any], attempts: Attempts, slot: Slot) -> End:
        def is_stopping() -> bool:
            if self._stopping.is_set():
                attempt.interrupt("its worker was stopped")  # there is nothing to checkpoint
            return False

        def go_on(_: object) -> Word:
            return "go on"

        try:
            with TemporaryDirectory(prefix="lzsweep-", ignore_cleanup_errors=True) as folder:
                spec = Spec(
                    config,
                    folder,
                    self._study.record.metrics,
                    slot.device,
                    slot.threads,
                    is_sanity=True,
                )
                attempt = attempts.begin(spec)
                end = attempt.follow(go_on, is_stopping, attempts.prepare)
                attempt.close()
                return end
        except (OSError, EOFError) as error:  # no room for a folder or a process, now
            return End("error", str(error))

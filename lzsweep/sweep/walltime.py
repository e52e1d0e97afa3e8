"""The time limit of a worker that is a job: what still fits into it, and how the job ends.

A trial is worth starting if it can reach its next checkpoint, which is its first validation. How
long that takes is judged by the trials of its network so far; while nothing is known, all fits.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime

from lzsweep.errors import LzsweepError
from lzsweep.sweep.record import Trial
from lzsweep.sweep.signals import Signals
from lzsweep.sweep.slurm import this_job
from lzsweep.sweep.space import Point
from lzsweep.sweep.study import Study
from lzsweep.tracking import recorder

EARLY_S = 60.0
"""Slurm may send the signal before the time limit so much earlier than it was asked to."""
LEAVE_S = 60.0
"""Time that a job needs to leave: runs are delivered, the cluster is asked to requeue it."""


class Walltime:
    """The time of the job that this process is; without a job it never ends.

    Args:
        study: what the job works on.
        signal_delay_s: how long before its end the job is told.
        clock: seconds since the epoch.
    """

    def __init__(
        self, study: Study, signal_delay_s: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._study = study
        self._clock = clock
        self._began = clock()
        self._job = this_job()
        ends = self._job.ends if self._job else None
        self._told = None if ends is None else ends - signal_delay_s
        self._leave_s = min(LEAVE_S, signal_delay_s / 2)
        self._leaves = None if ends is None else ends - self._leave_s
        self._is_full = threading.Event()
        self._progressed = threading.Event()

    def has_room(self) -> bool:
        """Whether a trial that begins now would reach a checkpoint before the job's end."""
        if self._told is None:
            return True
        needed = seconds_to_checkpoint(self._study.trials())
        if needed is not None and self._clock() + needed > self._told:
            self._is_full.set()
        return not self._is_full.is_set()

    def is_over(self) -> bool:
        """Whether what trains must end now, so that the job still leaves in order."""
        return self._leaves is not None and self._clock() > self._leaves

    def delivery_s(self) -> float:
        """Time for what is left to be delivered: the job keeps half of what it has to leave."""
        if self._leaves is None:
            return recorder.DELIVERY_S
        return min(recorder.DELIVERY_S, max(0.0, self._leaves + self._leave_s / 2 - self._clock()))

    def progress(self) -> None:
        """Note that a trial of this job reached a checkpoint."""
        self._progressed.set()

    def leave(self, signals: Signals) -> None:
        """End the job of a study that goes on: requeued where the cluster or its time says so.

        Does not return where the job is requeued.

        Raises:
            LzsweepError: the time limit is too short for any progress.
        """
        if self._job is None:
            signals.pass_on(lambda: False)
            return
        self._check_progress()
        if self._is_full.is_set():
            signals.requeue()
        signals.pass_on(self._job.is_kept)

    def _check_progress(self) -> None:
        if self._job is None or self._told is None or self._progressed.is_set():
            return
        is_over = self._is_full.is_set() or self._clock() > self._told - EARLY_S
        if not is_over or self._study.count_barren(self._job.id) < 2:
            return
        trials = self._study.trials()
        needed = seconds_to_checkpoint(trials) or 2 * (self._clock() - self._began)
        reserve = (self._job.ends or self._told) - self._told + EARLY_S
        text = (
            "time limit too short: a worker ended twice without any checkpoint; it needs at least"
            f" {math.ceil((needed + reserve) / 60)} min; set hydra.launcher.timeout_min"
        )
        if not any(t.curve for t in trials):  # nobody else gets on either
            self._study.stop(text)
        raise LzsweepError(text)


def seconds_to_checkpoint(trials: Sequence[Trial]) -> float | None:
    """Seconds from its start to its next checkpoint of the trial that is next; None if unknown.

    By the trials of the same network that were seen so far, the median over them of time by
    validations; the slowest network's where nobody has chosen yet which is next. Later attempts
    count neither way, because their curve holds what earlier ones did.
    """
    speeds: dict[Point, list[float]] = defaultdict(list)
    for trial in trials:
        if trial.attempt != 1 or not trial.curve:
            continue
        seconds = trial.train_s
        if trial.state == "running" and trial.started:
            seconds = (datetime.now() - trial.started).total_seconds()
        if seconds:
            speeds[_network_of(trial)].append(seconds / len(trial.curve))
    needed = {network: statistics.median(seen) for network, seen in speeds.items()}
    queued = [trial for trial in trials if trial.state == "waiting"]
    if queued:  # in the order in which they are claimed
        return needed.get(_network_of(max(queued, key=lambda trial: trial.attempt > 1)))
    return max(needed.values(), default=None)


def _network_of(trial: Trial) -> Point:
    """What is searched of the network, by which trials of a study differ most in speed."""
    return frozenset((k, v) for k, v in trial.params.items() if k.partition(".")[0] == "network")

"""One owner of the signals: the worker first, submitit's handler when the trials are back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from lzsweep.sweep.signals import Signals


@pytest.fixture
def requeued() -> Iterator[list[int]]:
    """Calls of the handler that submitit sets before the worker begins."""
    calls: list[int] = []
    before = {
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, lambda number, _: calls.append(number)),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: None),
    }
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("came", "is_kept", "n_requeued"),
    [
        ((signal.SIGUSR2,), False, 1),  # the time limit
        ((signal.SIGTERM,), False, 0),  # cancelled, or requeued by the cluster itself
        ((signal.SIGTERM,), True, 1),  # first notice of a preemption
        ((signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2), False, 1),
        ((signal.SIGINT,), True, 0),
        ((), True, 0),
    ],
)
def test_submitit_hears_of_it_when_the_trials_are_back(
    requeued: list[int], came: tuple[signal.Signals, ...], is_kept: bool, n_requeued: int
) -> None:
    stopping = threading.Event()
    with Signals(stopping) as signals:
        send(*came)
        assert stopping.is_set() == bool(came)
        assert requeued == [], "not before the worker says so"
        signals.pass_on(lambda: is_kept)
    assert requeued == [signal.SIGUSR2] * n_requeued
    send(signal.SIGUSR2)
    assert len(requeued) == n_requeued + 1, "the earlier handler is back"


def test_without_a_job_nothing_is_requeued(requeued: list[int]) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    with Signals(threading.Event()) as signals:
        assert not signals.is_job
        send(signal.SIGTERM)
        signals.pass_on(lambda: True)
        signals.requeue()
    assert requeued == []

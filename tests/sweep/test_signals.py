"""One owner of the signals: the worker first, submitit's handler when the trials are back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lzsweep.sweep.signals import Signals, left_to_workers
from tests.sweep.test_sweep import wait_for


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


def test_the_first_signal_of_a_worker_that_stops_already_ends_nothing_at_once() -> None:
    stopping = threading.Event()
    with Signals(stopping):
        stopping.set()  # by `lzsweep stop`, while trials write their checkpoints
        send(signal.SIGTERM)
        assert stopping.is_set()


def test_a_worker_hears_what_came_before_it_was_ready() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    stopping = threading.Event()
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        with Signals(stopping):
            assert stopping.is_set()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_ctrl_c_spares_what_a_launcher_started_and_ends_it_the_second_time(tmp_path: Path) -> None:
    said, pid = tmp_path / "said", tmp_path / "pid"

    def command() -> None:
        os.setsid()
        sys.stderr = said.open("w", buffering=1)
        with left_to_workers():
            pid.write_text(str(subprocess.Popen(["sleep", "600"]).pid))
            while True:
                time.sleep(0.05)

    process = multiprocessing.get_context("fork").Process(target=command)
    process.start()
    assert process.pid is not None
    wait_for(lambda: pid.exists() and pid.read_text() != "")
    started = psutil.Process(int(pid.read_text()))
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: "SIGINT: trials write a checkpoint" in said.read_text())
    assert process.is_alive()
    assert started.status() == psutil.STATUS_SLEEPING
    os.killpg(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 1
    wait_for(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE)

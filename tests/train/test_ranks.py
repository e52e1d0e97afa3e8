"""The processes of a training on several devices, forked and ended by ourselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist

from lzsweep.errors import LzsweepError
from lzsweep.train.module import NonFiniteLossError
from lzsweep.train.ranks import companions, n_processes


def meet() -> float:
    """Sum the ranks of both processes."""
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    number = torch.tensor(float(rank))
    dist.all_reduce(number)
    return float(number)


def meet_and(then: Callable[[], object]) -> None:
    meet()
    if os.environ["LOCAL_RANK"] == "1":
        then()
    dist.all_reduce(torch.zeros(1))


def fail() -> NoReturn:
    raise NonFiniteLossError("the loss is nan")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_slowly() -> None:
    """Close what others hear of, as the kernel does, some time before the death is told."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # of the listing itself
            if str(link.readlink()).startswith(("socket:", "pipe:")):
                os.close(int(link.name))
    time.sleep(0.5)
    die()


def test_two_processes_meet_and_leave_no_trace() -> None:
    before = dict(os.environ)
    for _ in range(2):
        with companions(2, meet):
            assert meet() == 1.0
        assert dict(os.environ) == before
        assert not dist.is_initialized()


def test_what_another_rank_raises_is_raised_here() -> None:
    with (
        pytest.raises(NonFiniteLossError, match="the loss is nan") as raised,
        companions(2, lambda: meet_and(fail)),
    ):
        meet_and(fail)
    assert "in the process of rank 1" in raised.value.__notes__[0]


@pytest.mark.parametrize("end", [die, die_slowly])
def test_a_rank_that_is_killed_is_told(end: Callable[[], None]) -> None:
    with (
        pytest.raises(LzsweepError, match="rank 1 was killed by signal SIGKILL"),
        companions(2, lambda: meet_and(end)),
    ):
        meet_and(end)


def test_a_fault_of_our_own_stays_ours() -> None:
    with pytest.raises(RuntimeError, match="ours"), companions(2, lambda: meet_and(fail)):
        raise RuntimeError("ours")


def test_a_fork_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    start = ForkProcess.start

    def start_no_more_than_one(process: ForkProcess) -> None:
        if process.name == "rank 2":
            raise BlockingIOError("no process more")
        start(process)

    monkeypatch.setattr(ForkProcess, "start", start_no_more_than_one)
    before, others = dict(os.environ), multiprocessing.active_children()
    with pytest.raises(BlockingIOError, match="no process more"), companions(3, signal.pause):
        pytest.fail("nobody is to train with one missing")
    assert dict(os.environ) == before
    assert set(multiprocessing.active_children()) <= set(others), "of other tests"


@pytest.mark.parametrize(
    ("trainer", "n"),
    [
        ({"devices": 1}, 1),
        ({"devices": 4}, 4),
        ({"devices": "2"}, 2),
        ({"devices": [0, 1]}, 2),
        ({"devices": "0,1,3"}, 3),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": 2, "strategy": "ddp"}, 2),
        ({"devices": 2, "strategy": "ddp_fork"}, 1),
    ],
)
def test_each_device_has_a_process(trainer: dict[str, object], n: int) -> None:
    assert n_processes(trainer) == n


def test_who_was_started_by_others_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert n_processes({"devices": 2}) == 1

"""A trial's process: it ends with its worker even when it hears nothing."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import sys
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection

import psutil
import pytest

from lzsweep.sweep.trial import (
    NonFinite,
    check_finite,
    die_with_forkserver,
    reason_of,
    take_device,
)


def _hang(pipe: Connection) -> None:
    die_with_forkserver()
    pipe.send(os.getpid())
    ctypes.PyDLL(None).sleep(600)  # with Python's lock: no thread of ours runs any more


def _work(pipe: Connection) -> None:
    forkserver._forkserver.__init__()  # type: ignore[misc]  # the parent's is not ours
    multiprocessing.set_forkserver_preload(["lzsweep.sweep.trial"])
    multiprocessing.get_context("forkserver").Process(target=_hang, args=(pipe,)).start()
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can")
def test_a_hanging_trial_ends_with_its_worker() -> None:
    here, there = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_work, args=(there,))
    worker.start()
    assert here.poll(120)
    trial = psutil.Process(here.recv())
    worker.kill()
    worker.join()
    _, alive = psutil.wait_procs([trial], timeout=60)
    assert not alive


@pytest.mark.parametrize(("before", "order"), [("", "PCI_BUS_ID"), ("FASTEST_FIRST",) * 2])
def test_a_device_is_the_one_that_was_counted(
    before: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, before)
    if not before:
        del os.environ["CUDA_DEVICE_ORDER"]
    take_device("1,3")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert os.environ["CUDA_DEVICE_ORDER"] == order, "what a user has set stays"


def test_a_full_disk_is_told_with_its_place() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/last.partial")
    assert reason_of(full) == (
        "the disk is full: No space left on device (/x/last.partial);"
        " make room before more trials fail"
    )
    wrapped = RuntimeError("file write failed")
    wrapped.__cause__ = full
    assert reason_of(wrapped) == reason_of(full)


def test_an_objective_that_compares_with_nothing() -> None:
    assert check_finite(["a"], (1.0,)) == (1.0,)
    with pytest.raises(NonFinite, match=r"an objective must be finite, but a=1\.0, b=inf"):
        check_finite(["a", "b"], (1.0, float("inf")))

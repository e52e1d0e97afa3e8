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

from lzsweep.sweep.trial import NonFinite, check_finite, die_with_forkserver, reason_of


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

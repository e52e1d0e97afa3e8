"""Memory of a trial's processes: what is their own, and the kernel's kills."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lzsweep.sweep.memory import memory_over, oom_kills

MB = 2**20
fork = multiprocessing.get_context("fork")
V1 = Path("/sys/fs/cgroup/memory")


def taken_by(work: Callable[[], object]) -> int:
    """Own memory of a child that has done some work and then sleeps, in MB."""
    ready = fork.Event()

    def child() -> None:
        kept = work()
        ready.set()
        signal.pause()
        print(kept)

    process = fork.Process(target=child)
    process.start()
    try:
        assert ready.wait(60)
        assert process.pid is not None
        return (memory_over(process.pid, 0) or 0) // MB
    finally:
        for descendant in psutil.Process(process.pid).children():
            descendant.kill()
        process.kill()
        process.join()


def test_own_memory_is_what_was_allocated(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.write_bytes(b"x" * (200 * MB))

    def read_store() -> object:
        file = store.open("rb")
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert mapped.find(b"y") == -1  # reads every page
        return mapped

    base = taken_by(lambda: None)
    assert 195 <= taken_by(lambda: bytearray(b"x" * (200 * MB))) - base <= 260
    assert abs(taken_by(read_store) - base) < 40, "the page cache is nobody's own"


def test_descendants_count_and_what_they_share_counts_once() -> None:
    def share() -> object:
        shared = bytearray(b"x" * (200 * MB))
        child = os.fork()
        if child == 0:
            signal.pause()
        return shared, child

    base = taken_by(lambda: None)
    assert 150 <= taken_by(share) - base < 390, "not 400, though two processes have it"


def test_below_the_limit_there_is_nothing_to_say() -> None:
    assert memory_over(os.getpid(), 2**50) is None
    assert memory_over(2**22 + 1, 0) is None, "a process that is gone"


@pytest.mark.skipif(
    os.geteuid() != 0 or not (V1 / "memory.limit_in_bytes").exists(),
    reason="a control group of version 1 of our own needs root",
)
def test_the_kernels_kills_are_counted() -> None:
    own = next(n for n in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in n)
    group = V1 / own.split(":")[2].lstrip("/")
    group = (group if group.exists() else V1) / f"test-{uuid.uuid4().hex}"
    group.mkdir()

    def child() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        (group / "memory.limit_in_bytes").write_text(str(32 * MB))
        before = oom_kills()
        victim = os.fork()
        if victim == 0:
            Path("/proc/self/oom_score_adj").write_text("1000")
            bytearray(b"x" * (100 * MB))
            os._exit(0)
        _, status = os.waitpid(victim, 0)
        os._exit(100 + oom_kills() - before if os.WTERMSIG(status) == signal.SIGKILL else 1)

    process = fork.Process(target=child)
    process.start()
    process.join()
    group.rmdir()
    assert process.exitcode == 101

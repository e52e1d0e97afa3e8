"""Memory of a trial's processes, and whether the kernel killed somebody for want of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

_OWN = re.compile(r"^(?:Pss_Anon|Pss_Shmem|SwapPss): +(\d+) kB$", re.MULTILINE)


def memory_over(pid: int, limit: float) -> int | None:
    """How much memory of their own a process and its descendants take, if that is over a limit.

    Own is what they allocated: a page that several of them share counts once, one that they still
    share with the process they were forked from in part, the page cache (a mapped store) not.

    Args:
        pid: the process.
        limit: bytes.

    Returns:
        Bytes above the limit, or None.
    """
    processes = list(_tree(pid))
    # To count own pages walks the page table; resident ones are at hand, and never fewer.
    if sum(map(_resident, processes)) <= limit:
        return None
    taken = sum(map(_own, processes))
    return taken if taken > limit else None


def _tree(pid: int) -> Iterator[psutil.Process]:
    try:
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)
    except psutil.Error:
        return


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _own(process: psutil.Process) -> int:
    try:
        counts = _OWN.findall(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
        if counts:
            return sum(map(int, counts)) * 1024
        return int(process.memory_full_info().uss)
    except (psutil.Error, OSError):
        return 0


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory where this one lives.

    Counted by our control group, of version 2 or 1; without one by the whole machine.
    """
    for file in _counters():
        try:
            if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE):
                return int(found[1])
        except OSError:
            continue
    return 0


def _counters() -> Iterator[Path]:
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    groups = {names: path.lstrip("/") for _, names, path in (n.split(":", 2) for n in lines)}
    # In a container the path may be the host's, and its own group the root of what it sees.
    for group in (groups.get(""), ""):
        if group is not None:
            yield root / group / "memory.events"
    for group in (groups.get("memory"), ""):
        if group is not None:
            yield root / "memory" / group / "memory.oom_control"
    yield Path("/proc/vmstat")

"""Which process has a claim, told apart from any later one of the same number."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def this_host() -> str:
    """The machine's name; a node of a cluster is known by the name that the cluster gives it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def this_process() -> dict[str, Any]:
    """What a claim says of its process: host, boot, pid, birth."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": this_host(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "pid": os.getpid(),
        "born": _birth(os.getpid()),
    }


def _birth(pid: int) -> str:
    """When a process began; empty if there is none, or only the remains of one."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        stat = Path(f"/proc/{pid}/stat")
        # Ticks since boot: unlike a time of day they do not move when the clock is set.
        return (
            stat.read_text().rpartition(")")[2].split()[19]
            if stat.exists()
            else str(process.create_time())
        )
    except (psutil.NoSuchProcess, OSError):
        return ""


def is_alive(claim: Mapping[str, Any]) -> bool:
    """Whether the process of a claim made on this host, since its last boot, still runs."""
    return bool(_birth(claim["pid"]) == claim["born"])

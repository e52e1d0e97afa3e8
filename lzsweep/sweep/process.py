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
    """What a claim says of its process: host, machine, boot, process table, pid, birth."""
    return {
        "host": this_host(),
        "machine": _read("/etc/machine-id"),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "table": _table(),
        "pid": os.getpid(),
        "born": _birth(os.getpid()),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _table() -> str:
    """Which process table this process is in: each container has one of its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


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


def is_dead(claim: Mapping[str, Any]) -> bool:
    """Whether the process of a claim is known to be gone; of another machine's nobody here knows.

    Machines and containers may share a name, and containers a machine.
    """
    here = this_process()
    if any(claim.get(key, here[key]) != here[key] for key in ("host", "machine")):
        return False
    if claim["boot"] != here["boot"]:
        return True
    if claim.get("table", here["table"]) != here["table"]:
        return False
    return bool(_birth(claim["pid"]) != claim["born"])

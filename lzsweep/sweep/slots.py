"""Slots: the places of a worker where one trial runs at a time.

Devices are counted without torch, which would take its share of every GPU it counts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lzsweep.errors import UserError


@dataclass(frozen=True)
class Slot:
    """One trial's place.

    Attributes:
        number: counts from 0 within the worker.
        device: its CUDA_VISIBLE_DEVICES; None where the machine has no GPU.
        threads: CPU threads of a trial here.
        share: the part of a device that it is: of its GPU, or of its threads' cores.
    """

    number: int
    device: str | None
    threads: int
    share: float = 1.0


def find_slots(slots: str, slots_per_device: int) -> list[Slot]:
    """The slots of this machine.

    Args:
        slots: `auto` (one a GPU times `slots_per_device`; without GPUs one a core) or a number.
        slots_per_device: trials that share a GPU; only `auto` looks at it.

    Raises:
        UserError: a number that is none, or below 1.
    """
    devices = _visible_devices()
    n_cores = len(os.sched_getaffinity(0))
    if slots == "auto":
        n_slots = len(devices) * slots_per_device or n_cores
    else:
        n_slots = int(slots) if slots.isdigit() else 0
    if n_slots < 1 or slots_per_device < 1:
        raise UserError(
            "worker.slots must be `auto` or at least 1, and worker.slots_per_device at least 1,"
            f" but got {slots} and {slots_per_device}; set worker.slots=auto"
        )
    threads = max(1, n_cores // n_slots)
    share = min(1.0, len(devices) / n_slots) if devices else 1.0
    return [
        Slot(n, devices[n % len(devices)] if devices else None, threads, share)
        for n in range(n_slots)
    ]


def _visible_devices() -> list[str]:
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None:
        return [device for device in mask.split(",") if device and device != "-1"]
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(n) for n in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver, so no GPU
        return []

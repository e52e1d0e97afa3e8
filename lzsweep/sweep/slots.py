"""Slots: the places of a worker where one trial runs at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lzsweep.errors import UserError
from lzsweep.train.devices import visible_gpus


@dataclass(frozen=True)
class Slot:
    """One trial's place.

    Attributes:
        number: counts from 0 within the worker.
        device: its CUDA_VISIBLE_DEVICES; None where the machine has no GPU.
        threads: CPU threads of each process of a trial here.
        share: how much of a device it is: of its GPU, several of them, or its threads' cores.
    """

    number: int
    device: str | None
    threads: int
    share: float = 1.0


def find_slots(slots: str, slots_per_device: int, devices_per_trial: int = 1) -> list[Slot]:
    """The slots of this machine.

    Args:
        slots: `auto` (one a GPU times `slots_per_device`; without GPUs one a core) or a number.
        slots_per_device: trials that share a GPU; only `auto` looks at it.
        devices_per_trial: GPUs that make one place together, or processes that share its cores.

    Raises:
        UserError: a number that is none, or below 1, or more devices than there are.
    """
    devices = visible_gpus()
    if 0 < len(devices) < devices_per_trial:
        raise UserError(
            "trainer.devices must not exceed the GPUs of a worker, but got"
            f" {devices_per_trial} and there are {len(devices)}; lower it, or ask for more"
            " (hydra.launcher.gpus_per_node)"
        )
    n_cores = len(os.sched_getaffinity(0))
    starts = range(0, len(devices) - devices_per_trial + 1, devices_per_trial)
    groups = [",".join(devices[n : n + devices_per_trial]) for n in starts]
    if slots == "auto":
        n_slots = len(groups) * slots_per_device or max(1, n_cores // devices_per_trial)
    else:
        n_slots = int(slots) if slots.isdigit() else 0
    if n_slots < 1 or slots_per_device < 1:
        raise UserError(
            "worker.slots must be `auto` or at least 1, and worker.slots_per_device at least 1,"
            f" but got {slots} and {slots_per_device}; set worker.slots=auto"
        )
    threads = max(1, n_cores // n_slots // devices_per_trial)
    share = devices_per_trial * min(1.0, len(groups) / n_slots) if groups else 1.0
    return [
        Slot(n, groups[n % len(groups)] if groups else None, threads, share)
        for n in range(n_slots)
    ]


def devices_per_trial(trainer: Mapping[str, Any]) -> int:
    """Devices of a machine that each trial of a sweep takes, which its slots must have.

    Args:
        trainer: the trainer's arguments; `auto` devices are one.

    Raises:
        UserError: it is no number, or the trial wants more than one machine.
    """
    devices, n_nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if n_nodes != 1:
        raise UserError(
            f"a trial of a sweep trains on one machine, but trainer.num_nodes is {n_nodes};"
            " set it to 1, or train without -m"
        )
    text = "1" if devices == "auto" else str(devices)
    if not (text.isdigit() and int(text) > 0):
        raise UserError(
            "trainer.devices must be a number of devices in a sweep, whose slots choose which,"
            f" but got {devices}; set trainer.devices=1 or more"
        )
    return int(text)

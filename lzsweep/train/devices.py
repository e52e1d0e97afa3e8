"""The GPUs of this machine, and whether they are those that a training asks for.

Without torch, which would take its share of every GPU it counts, and seconds for its import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lzsweep.errors import UserError

DRIVERS = ("/dev/kfd", "/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/dxg")
"""AMD's, NVIDIA's, a Jetson's, Windows': where one is and no GPU is counted, torch decides."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None:
        return [device for device in mask.split(",") if device and device != "-1"]
    return [str(n) for n in range(_count_gpus())]


def check_gpus(trainer: Mapping[str, Any]) -> None:
    """See that the GPUs which a trainer insists on are here, where it will train.

    Args:
        trainer: its arguments; `accelerator=auto` takes what there is.

    Raises:
        UserError: there is no GPU, or there are fewer than it asks for.
    """
    wanted = str(trainer.get("accelerator", "auto"))
    if wanted not in ("gpu", "cuda"):
        return
    n_gpus = _count_gpus()
    if not n_gpus and any(Path(driver).exists() for driver in DRIVERS):
        return
    visible = visible_gpus()
    if not visible and n_gpus:
        raise UserError(
            f"trainer.accelerator={wanted} needs a GPU, but CUDA_VISIBLE_DEVICES="
            f"{os.environ['CUDA_VISIBLE_DEVICES']} hides those that are here; unset it, or use"
            " trainer=auto or trainer=cpu"
        )
    if not visible or not n_gpus:
        raise UserError(
            f"trainer.accelerator={wanted} needs a GPU, but none is here; use trainer=auto or"
            " trainer=cpu"
        )
    if (n_asked := _count_asked(trainer.get("devices", "auto"))) > len(visible):
        raise UserError(
            f"trainer.devices must not exceed the GPUs of this machine, but got {n_asked} and"
            f" there are {len(visible)}; set trainer.devices={len(visible)} or fewer"
        )


def _count_asked(devices: Any) -> int:
    """How many devices; 0 where that is `all`, or nothing that can be counted."""
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    return len(text.strip(",").split(",")) if "," in text else int(text) if text.isdigit() else 0


def _count_gpus() -> int:
    import pynvml

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:  # no driver, so no GPU
        return 0

"""The most that a device can do: its large matrix products, and how many of them a network needs.

A training step counts three times the products of a forward pass, two operations for a
multiplication and an addition.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from lzsweep.train.cost import count_flops
from lzsweep.train.network import Network

_WARM_UP = 10


def training_flops(blocks: int, filters: int) -> float:
    """FLOPs of the convolutions and dense layers for one position of a training step."""
    net = Network(blocks, filters)
    return 3 * count_flops(lambda: net(torch.zeros(1, *net.planes_shape())))


def matmul_ceiling(device: torch.device, dtype: torch.dtype, n_steps: int) -> float:
    """FLOP/s of a product large enough to keep the device busy."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * n**3 / seconds(lambda: a @ b, n_steps, device)


def seconds(work: Callable[[], object], n_times: int, device: torch.device) -> float:
    """Seconds for each call, the device's work included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(_WARM_UP):
        work()
    wait()
    began = time.perf_counter()
    for _ in range(n_times):
        work()
    wait()
    return (time.perf_counter() - began) / n_times

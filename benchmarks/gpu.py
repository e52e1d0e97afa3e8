"""Training and decoding on a GPU; no rows where there is none.

Ours is what the defaults come to there: bfloat16, channels_last, compiled, the store in the
device's memory. The peer is the same network eagerly in float32 and torch's default layout (and
torch's default for float32 products), with batches of float32 planes from a DataLoader. The
ceiling is a large bfloat16 product; a training step counts three times the products of a forward
pass, two for a multiplication and an addition.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.ceiling import matmul_ceiling, seconds, training_flops
from benchmarks.table import Row
from lzsweep.train.data import GoData, Pick, Rows, gather
from lzsweep.train.decode import Batch, Decoder
from lzsweep.train.network import Network

NETWORKS = {"small": (8, 32, 2048), "big": (6, 128, 2048)}  # blocks, filters, batch size
DECODE_BATCH = 4096
MIN_DECODED = 5e6  # positions/s


def rows(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Rates in positions/s and the part of the measured ceiling that they make use of."""
    if not torch.cuda.is_available():
        return
    device = torch.device("cuda", torch.cuda.current_device())
    n_steps = 5 if quick else 100
    ceiling = matmul_ceiling(device, torch.bfloat16, n_steps)
    for name, (blocks, filters, batch_size) in NETWORKS.items():
        resident = GoData("bundled", folder / "cache", batch_size=batch_size, device_resident=True)
        ours = train_rate(blocks, filters, resident_batches(resident, device), n_steps, fast=True)
        loaded = loaded_batches(folder / "cache", batch_size, device)
        peer = train_rate(blocks, filters, loaded, n_steps, fast=False)
        against = f"eager float32, DataLoader, batch {batch_size}"
        yield Row(f"gpu_{name}", against, ours, peer, "positions/s", ">= 1")
        used = ours * training_flops(blocks, filters)
        yield Row(f"gpu_{name}_ceiling", "measured bf16 matmul", used, ceiling, "FLOP/s", ">= 0")
    yield decoding(folder / "cache", device, n_steps)


def decoding(cache: Path, device: torch.device, n_steps: int) -> Row:
    """Gathering and decoding on the device."""
    data = GoData("bundled", cache, batch_size=DECODE_BATCH, device_resident=True)
    batches = resident_batches(data, device)
    rate = DECODE_BATCH / seconds(lambda: next(batches), n_steps, device)
    against = f"{MIN_DECODED:.0e} positions/s, batch {DECODE_BATCH}"
    return Row("gpu_decode", against, rate, MIN_DECODED, "positions/s", ">= 1")


def resident_batches(data: GoData, device: torch.device) -> Iterator[Batch]:
    """Endless turned batches, gathered and decoded on the device that holds the store."""
    data.setup("fit")
    columns, decode = Rows.of(data.store, device), Decoder()
    while True:
        for pick in data.train_dataloader():
            there = Pick(*(part.to(device, non_blocking=True) for part in pick))
            yield decode(gather(columns, there))


class _Items(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Float planes in memory, item by item, as a DataLoader wants them."""

    def __init__(self, batch: Batch) -> None:
        self._parts = (batch.planes.contiguous(), batch.move, batch.value)

    def __len__(self) -> int:
        return len(self._parts[1])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        planes, move, value = self._parts
        return planes[index], move[index], value[index]


def loaded_batches(cache: Path, batch_size: int, device: torch.device) -> Iterator[Batch]:
    data = GoData("bundled", cache, batch_size=4 * batch_size)
    data.setup("fit")
    some = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    n_workers = max(1, min(8, (os.cpu_count() or 1) - 1))
    loader = DataLoader(
        _Items(some),
        batch_size,
        shuffle=True,
        num_workers=n_workers,
        pin_memory=True,
        persistent_workers=True,
    )
    while True:
        for batch in loader:
            yield Batch(*(part.to(device, non_blocking=True) for part in batch))


def train_rate(
    blocks: int, filters: int, batches: Iterator[Batch], n_steps: int, *, fast: bool
) -> float:
    """Positions a second of whole training steps, batches included."""
    device = torch.device("cuda", torch.cuda.current_device())
    net = Network(blocks, filters).to(device)
    if fast:
        net = net.to(memory_format=torch.channels_last)
        net.compile()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    n_positions = 0

    def step() -> None:
        nonlocal n_positions
        batch = next(batches)
        n_positions = len(batch.value)
        with torch.autocast("cuda", torch.bfloat16, enabled=fast):
            logits, value = net(batch.planes)
            loss = F.cross_entropy(logits, batch.move) + F.mse_loss(value, batch.value)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    took = seconds(step, n_steps, device)
    return n_positions / took

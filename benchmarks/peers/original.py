"""leela-zero-pytorch (Lightning, 2020), the project that this one began as.

Said again from its `dataset.py`, `network.py` and `train.py`: text chunks are parsed line by line
in a process for each core at every start; all planes stay in memory as bytes; an item is sixteen
tensors that are unpacked one by one and stacked. Training is eager float32 in torch's default
layout. Symmetries are left out, as in the version at hand, which is to its advantage here.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

N_STONE_PLANES = 16
LINES = N_STONE_PLANES + 3
SIZE = 19

Item = tuple[Tensor, Tensor, Tensor]
_Parsed = tuple[list[NDArray[np.uint8]], list[int], list[NDArray[np.uint8]], list[int]]


def parse_chunk(path: Path) -> _Parsed:
    planes: list[NDArray[np.uint8]] = []
    sides: list[int] = []
    policies: list[NDArray[np.uint8]] = []
    outcomes: list[int] = []
    with gzip.open(path, "rt") as lines:
        for number, line in enumerate(lines):
            text = line.strip()
            place = number % LINES
            if place < N_STONE_PLANES:
                planes.append(np.array(bytearray.fromhex("0" + text)))
            elif place == N_STONE_PLANES:
                sides.append(int(text))
            elif place == N_STONE_PLANES + 1:
                policies.append(np.array([int(p) for p in text.split()], dtype=np.uint8))
            else:
                outcomes.append(int(text))
    return planes, sides, policies, outcomes


class Positions(Dataset[Item]):
    """All positions of some chunk files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        planes: list[NDArray[np.uint8]] = []
        sides: list[int] = []
        policies: list[NDArray[np.uint8]] = []
        outcomes: list[int] = []
        with ProcessPoolExecutor() as pool:
            for found in pool.map(parse_chunk, paths):
                planes += found[0]
                sides += found[1]
                policies += found[2]
                outcomes += found[3]
        self.planes = np.stack(planes)
        self.sides = np.array(sides)
        self.policies = np.stack(policies)
        self.outcomes = np.array(outcomes)

    @property
    def n_bytes(self) -> int:
        arrays = (self.planes, self.sides, self.policies, self.outcomes)
        return sum(array.nbytes for array in arrays)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, index: int) -> Item:
        first = index * N_STONE_PLANES
        stacked = [_unpack(row) for row in self.planes[first : first + N_STONE_PLANES]]
        ones, zeros = torch.ones(SIZE, SIZE), torch.zeros(SIZE, SIZE)
        stacked += [zeros, ones] if self.sides[index] else [ones, zeros]
        return (
            torch.stack(stacked),
            torch.tensor(self.policies[index].argmax()),
            torch.tensor(self.outcomes[index]).float(),
        )


def _unpack(row: NDArray[np.uint8]) -> Tensor:
    bits = np.unpackbits(row)[7:]
    return torch.tensor(bits).float().view(SIZE, SIZE)


class _Block(nn.Module):
    """Convolution, batch norm without parameters, a learnt shift, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=False)
        self.beta = nn.Parameter(torch.zeros(outputs))
        self.relu = relu
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x += self.beta.view(1, -1, 1, 1).expand_as(x)
        return F.relu(x, inplace=True) if self.relu else x


class _Residual(nn.Module):
    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first = _Block(filters, filters, 3)
        self.second = _Block(filters, filters, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.first(x))
        out += x
        return F.relu(out, inplace=True)


class Net(nn.Module):
    """The tower with its two heads."""

    def __init__(self, blocks: int, filters: int) -> None:
        super().__init__()
        tower = [_Residual(filters) for _ in range(blocks)]
        self.tower = nn.Sequential(_Block(18, filters, 3), *tower)
        self.policy_conv = _Block(filters, 2, 1)
        self.policy = nn.Linear(2 * SIZE * SIZE, SIZE * SIZE + 1)
        self.value_conv = _Block(filters, 1, 1)
        self.value_1 = nn.Linear(SIZE * SIZE, 256)
        self.value_2 = nn.Linear(256, 1)

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tower(planes)
        policy = self.policy(torch.flatten(self.policy_conv(x), 1))
        value = F.relu(self.value_1(torch.flatten(self.value_conv(x), 1)), inplace=True)
        return policy, torch.tanh(self.value_2(value))


def train_steps(net: Net, batches: Iterable[Item], lr: float = 0.05) -> Iterable[float]:
    """One eager step for each batch; yields the losses."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True)
    for planes, move, outcome in batches:
        policy, value = net(planes)
        loss = F.mse_loss(value.squeeze(), outcome) + F.cross_entropy(policy, move)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield float(loss.detach())

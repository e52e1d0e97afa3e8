"""Leela Zero's network: a residual tower with a policy and a value head.

    planes -> conv3x3 -> residual blocks -> policy: conv1x1 (2 filters) -> dense: move logits
                                         -> value: conv1x1 (1 filter) -> dense 256 -> dense, tanh

Every convolution is followed by batch normalisation without a gain, as the engine's weights file
holds none (leela-zero src/Network.cpp:225-407 and 550-570). Shape letters: B positions, C filters,
S points on a side of the board.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POLICY_FILTERS = 2
VALUE_FILTERS = 1
VALUE_HIDDEN = 256
NORM_EPS = 1e-5  # the engine adds the same number to the variance


class BetaNorm(nn.Module):
    """Batch normalisation with a learned shift (`beta`) and a gain fixed to one."""

    mean: Tensor  # [C] running mean
    var: Tensor  # [C] running variance
    gain: Tensor  # [C] ones; cuDNN wants the tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.register_buffer("gain", torch.ones(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.mean,
            self.var,
            self.gain,
            self.beta,
            training=self.training,
            momentum=self.momentum,
            eps=NORM_EPS,
        )


class ConvNorm(nn.Module):
    """A convolution without bias, then `BetaNorm`; the board keeps its size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = BetaNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class ResidualBlock(nn.Module):
    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first = ConvNorm(filters, filters, 3)
        self.second = ConvNorm(filters, filters, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + x)


class Network(nn.Module):
    """The tower and its heads.

    Args:
        blocks: residual blocks, 0 or more.
        filters: filters of every tower convolution, 1 or more.
        in_channels: input planes (18 in Leela Zero).
        board_size: points on a side; the policy has board_size**2 + 1 moves, the last one is pass.
        init_from: what a training of this network starts from; it reads that, not the network.

    Raises:
        ValueError: a size is out of its range.
    """

    def __init__(
        self,
        blocks: int,
        filters: int,
        *,
        in_channels: int = 18,
        board_size: int = 19,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        if blocks < 0 or filters < 1 or in_channels < 1 or board_size < 2:
            raise ValueError(
                "`blocks >= 0`, `filters >= 1`, `in_channels >= 1` and `board_size >= 2` must "
                f"hold, but got {blocks=}, {filters=}, {in_channels=}, {board_size=}."
            )
        self.blocks = blocks
        self.filters = filters
        self.in_channels = in_channels
        self.board_size = board_size
        self.init_from = init_from
        points = board_size**2
        self.stem = ConvNorm(in_channels, filters, 3)
        self.tower = nn.Sequential(*(ResidualBlock(filters) for _ in range(blocks)))
        self.policy_conv = ConvNorm(filters, POLICY_FILTERS, 1)
        self.policy_dense = nn.Linear(POLICY_FILTERS * points, points + 1)
        self.value_conv = ConvNorm(filters, VALUE_FILTERS, 1)
        self.value_hidden = nn.Linear(VALUE_FILTERS * points, VALUE_HIDDEN)
        self.value_out = nn.Linear(VALUE_HIDDEN, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        # Each policy filter starts as a map of move logits, so that what the tower learns about
        # one point counts for all. From noise, the dense layer gets there far later.
        nn.init.normal_(self.policy_dense.weight, std=1e-3)
        points = torch.arange(self.board_size**2)
        with torch.no_grad():
            for filter_ in range(POLICY_FILTERS):
                self.policy_dense.weight[points, filter_ * len(points) + points] += 1
        # A mild opinion on the value; a strong one saturates tanh in the first steps.
        nn.init.xavier_normal_(self.value_out.weight)

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate positions.

        Args:
            planes: `[B, in_channels, S, S]`, the side to move's stones first.

        Returns:
            Move logits `[B, S*S+1]` and the value `[B]` in -1..1 for the side to move, float32.
        """
        x = self.tower(F.relu(self.stem(planes)))
        policy = F.relu(self.policy_conv(x)).flatten(1)
        value = F.relu(self.value_conv(x)).flatten(1)
        # The dense layers are cheap, and eight bits of a logit are too few: never below float32.
        with torch.autocast(x.device.type, enabled=False):
            logits = self.policy_dense(policy.float())
            hidden = F.relu(self.value_hidden(value.float()))
            return logits, torch.tanh(self.value_out(hidden)).squeeze(1)

    def decayed_weights(self) -> Iterator[Tensor]:
        """The convolution and dense weights, which L2 holds small; never biases or betas."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                yield module.weight

    def shape(self) -> dict[str, int]:
        """What the constructor needs to build a network that this one's state fits."""
        return {
            "blocks": self.blocks,
            "filters": self.filters,
            "in_channels": self.in_channels,
            "board_size": self.board_size,
        }

    def planes_shape(self) -> tuple[int, int, int]:
        """The shape of one position's planes, `(in_channels, S, S)`."""
        return self.in_channels, self.board_size, self.board_size

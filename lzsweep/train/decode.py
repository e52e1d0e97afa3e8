"""From packed boards to network input, vectorised in torch on whatever device holds the batch.

A packed position is sixteen sets of stones of 46 bytes each (point k = y * 19 + x is bit k % 8 of
byte k // 8): the side to move's at T, T-1 .. T-7, then the opponent's. Decoding unpacks the bits,
applies one of the board's eight symmetries and adds the two colour planes: `[B, 18, 19, 19]` as
the engine sees them (leela-zero src/Network.cpp:935-966).

Symmetries carry leelaz' numbers (Network.cpp:968-995): the new board at (x, y) shows the old one
at a point found by: if s & 4 swap x and y; if s & 2 mirror x; if s & 1 mirror y. The positions of
a batch lie sorted by symmetry, so that each symmetry is one slice and a few strided copies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lzsweep.go.board import BOARD_SIZE, N_MOVES, N_POINTS, PASS

HISTORY = 8
STONES_BYTES = 46
N_SYMMETRIES = 8
STONE_PLANES = 2 * HISTORY
N_PLANES = STONE_PLANES + 2
_PADDED_BITS = STONES_BYTES * 8
_PAD = _PADDED_BITS - N_POINTS

WHITE_TO_MOVE = 1  # flag bit 0
MOVER_WON = 2  # flag bit 1
HISTORY_SHIFT = 2  # flag bits 2-4


class Policy(NamedTuple):
    """Policies as they lie in the store."""

    moves: Tensor  # uint8 [B, 46], a bit for each move that has any probability
    values: Tensor  # float16 [N] theirs, position by position


class Packed(NamedTuple):
    """Positions as they lie in the store; the first letter of a shape is B positions."""

    stones: Tensor  # uint8 [B, 16, 46], the side to move's first; empty before the game began
    flags: Tensor  # uint8 [B]: white to move, side to move won, number of earlier frames
    move: Tensor  # int64 [B] in 0..361
    symmetry: Tensor  # uint8 [B], ascending
    bounds: tuple[int, ...]  # symmetry s owns positions bounds[s]:bounds[s + 1]
    policy: Policy | None = None  # None: the moves are all there is


class Batch(NamedTuple):
    """What the network trains on."""

    planes: Tensor  # float32 [B, 18, 19, 19]
    move: Tensor  # int64 [B], or the policy, float32 [B, 362]; turned with the board
    value: Tensor  # float32 [B]: +1 the side to move won, -1 it lost


def symmetry_table() -> Tensor:
    """Return `[8, 362]`: the old point that the new board shows at each point; pass stays pass."""
    y, x = torch.meshgrid(torch.arange(BOARD_SIZE), torch.arange(BOARD_SIZE), indexing="ij")
    rows = []
    for s in range(N_SYMMETRIES):
        old_x, old_y = (y, x) if s & 4 else (x, y)
        old_x = BOARD_SIZE - 1 - old_x if s & 2 else old_x
        old_y = BOARD_SIZE - 1 - old_y if s & 1 else old_y
        points = (old_y * BOARD_SIZE + old_x).flatten()
        rows.append(torch.cat([points, torch.tensor([PASS])]))
    return torch.stack(rows)


class Decoder:
    """Turns `Packed` into `Batch`; holds its tables on every device that it has met."""

    def __init__(self) -> None:
        bits = ((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1).to(torch.uint8)
        # One lookup yields the eight points of a byte; rows 256.. give them in reverse.
        spread = torch.cat([bits, bits.flip(1)]).contiguous().view(torch.int64).flatten()
        # Where a move on the old board lies on the new one: the inverse of the point table.
        points = symmetry_table()
        self._tables = {torch.device("cpu"): (spread, points.argsort(dim=1), points)}

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._tables:
            spread, moves, points = self._tables[torch.device("cpu")]
            self._tables[device] = (spread.to(device), moves.to(device), points.to(device))
        return self._tables[device]

    def __call__(self, packed: Packed) -> Batch:
        spread, move_table, point_table = self._tables_on(packed.stones.device)
        white = packed.flags & WHITE_TO_MOVE
        points = self._unpack(packed, spread)
        planes = points.new_empty(
            (len(white), N_PLANES, BOARD_SIZE, BOARD_SIZE), dtype=torch.float32
        )
        planes[:, STONE_PLANES:] = torch.stack([1 - white, white], 1).float()[:, :, None, None]
        for s, (start, end) in enumerate(zip(packed.bounds, packed.bounds[1:], strict=False)):
            if start < end:
                planes[start:end, :STONE_PLANES] = _turn(points[start:end], s)
        symmetry = packed.symmetry.long()
        if packed.policy is None:
            move = move_table.view(-1)[symmetry * N_MOVES + packed.move]
        else:
            move = _spread_policy(packed.policy, spread).gather(1, point_table[symmetry])
        won = (packed.flags & MOVER_WON) != 0
        return Batch(planes, move, won.float() * 2 - 1)

    def _unpack(self, packed: Packed, spread: Tensor) -> Tensor:
        """Return the points as uint8 `[B, 16, 368]`, each board reversed where x is mirrored."""
        code = packed.stones.to(torch.int32)
        # A board read backwards is the board mirrored in x and y: free, if done on the bytes.
        for first, end in ((2, 4), (6, 8)):
            turned = slice(packed.bounds[first], packed.bounds[end])
            code[turned] = code[turned].flip(-1) + 256
        points = spread.index_select(0, code.view(-1)).view(torch.uint8)
        return points.view(-1, STONE_PLANES, _PADDED_BITS)


def _spread_policy(policy: Policy, spread: Tensor) -> Tensor:
    """Return the policies, float32 `[B, 362]`, each adding up to 1."""
    bits = spread.index_select(0, policy.moves.to(torch.int32).view(-1)).view(torch.uint8)
    tried = bits.view(len(policy.moves), -1)[:, :N_MOVES].bool()
    dense = torch.zeros(tried.shape, device=tried.device)
    dense.masked_scatter_(tried, policy.values.float())
    return dense / dense.sum(1, keepdim=True)


def _turn(points: Tensor, symmetry: int) -> Tensor:
    start = _PAD if symmetry & 2 else 0
    shape = (len(points), STONE_PLANES, BOARD_SIZE, BOARD_SIZE)
    board = points[:, :, start : start + N_POINTS].view(shape)
    # Reading backwards mirrored y as well, so y needs a mirror where the two bits differ.
    if (symmetry & 1) != (symmetry >> 1 & 1):
        board = board.flip(-2)
    return board.transpose(-1, -2).contiguous() if symmetry & 4 else board

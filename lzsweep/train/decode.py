"""From packed boards to network input, vectorised in torch on whatever device holds the batch.

A packed position is sixteen sets of stones of 46 bytes each (point k = y * 19 + x is bit k % 8 of
byte k // 8): the side to move's at T, T-1 .. T-7, then the opponent's. Decoding transposes these
bits, so that a byte holds one point of eight planes; applies one of the board's eight symmetries,
which are then mere permutations of bytes; spreads the bits over the planes; and adds the two
colour planes: `[B, 18, 19, 19]` as the engine sees them (leela-zero src/Network.cpp:935-966).

Symmetries carry leelaz' numbers (Network.cpp:968-995): the new board at (x, y) shows the old one
at a point found by: if s & 4 swap x and y; if s & 2 mirror x; if s & 1 mirror y.
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
_GROUP = 8  # planes whose bits make a byte
_N_GROUPS = STONE_PLANES // _GROUP
_ROW_BYTES = 48  # a set of stones, filled up to whole 64-bit words
_GROUP_BYTES = _GROUP * _ROW_BYTES
# Swapping blocks of 4x4, then 2x2, then 1x1 bits transposes 8x8 of them (Hacker's Delight, 7-3).
_SWAPS = ((4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333), (1, 0x5555555555555555))

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
    symmetry: Tensor  # uint8 [B]
    policy: Policy | None = None  # None: the moves are all there is


class Batch(NamedTuple):
    """What the network trains on."""

    planes: Tensor  # uint8 [B, 18, 19, 19], 0 or 1; a quarter of what float32 would take
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


class _Tables(NamedTuple):
    """What `Decoder` looks up, on one device."""

    source: Tensor  # int64 [8, 2 * 361] the transposed byte of each group and new point
    new_move: Tensor  # int64 [8, 362] where a move on the old board lies on the new one
    old_move: Tensor  # int64 [8, 362] the inverse
    shift: Tensor  # uint8 [8, 1]


class Decoder:
    """Turns `Packed` into `Batch`; holds its tables on every device that it has met."""

    def __init__(self) -> None:
        old_move = symmetry_table()
        point = old_move[:, :N_POINTS]
        # Transposed, bit k % 8 of byte k // 8 has become byte k // 8 of row k % 8.
        byte = point % 8 * _ROW_BYTES + point // 8
        source = torch.cat([byte + group * _GROUP_BYTES for group in range(_N_GROUPS)], 1)
        shift = torch.arange(_GROUP, dtype=torch.uint8)[:, None]
        tables = _Tables(source, old_move.argsort(dim=1), old_move, shift)
        self._tables = {torch.device("cpu"): tables}

    def _tables_on(self, device: torch.device) -> _Tables:
        if device not in self._tables:
            here = self._tables[torch.device("cpu")]
            self._tables[device] = _Tables(*(table.to(device) for table in here))
        return self._tables[device]

    def __call__(self, packed: Packed) -> Batch:
        tables = self._tables_on(packed.stones.device)
        n = len(packed.flags)
        symmetry = packed.symmetry.long()
        codes = _transpose(packed.stones).gather(1, tables.source[symmetry])
        planes = codes.new_empty((n, N_PLANES, N_POINTS))
        stones = planes[:, :STONE_PLANES].view(n, _N_GROUPS, _GROUP, N_POINTS)
        grouped = codes.view(n, _N_GROUPS, 1, N_POINTS)
        torch.bitwise_right_shift(grouped, tables.shift, out=stones)
        stones &= 1
        white = packed.flags & WHITE_TO_MOVE
        planes[:, STONE_PLANES:] = torch.stack([1 - white, white], 1)[:, :, None]
        if packed.policy is None:
            move = tables.new_move.view(-1)[symmetry * N_MOVES + packed.move]
        else:
            move = _spread_policy(packed.policy).gather(1, tables.old_move[symmetry])
        won = (packed.flags & MOVER_WON) != 0
        board = (n, N_PLANES, BOARD_SIZE, BOARD_SIZE)
        return Batch(planes.view(board), move, won.float() * 2 - 1)


def _transpose(stones: Tensor) -> Tensor:
    """Return uint8 `[B, 2 * 384]`: byte p * 48 + k of a group is point 8 k + p of its planes."""
    n = len(stones)
    rows = stones.new_zeros((n * _N_GROUPS, _GROUP, _ROW_BYTES))
    rows[..., :STONES_BYTES] = stones.view(n * _N_GROUPS, _GROUP, STONES_BYTES)
    words = rows.view(torch.int64)
    for distance, mask in _SWAPS:
        pairs = words.view(n * _N_GROUPS, -1, 2, distance, words.shape[-1])
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        # The mask also takes away the sign that shifting draws in.
        swapped = ((first >> distance) ^ second) & mask
        second ^= swapped
        first ^= swapped << distance
    return rows.view(n, _N_GROUPS * _GROUP_BYTES)


def _spread_policy(policy: Policy) -> Tensor:
    """Return the policies, float32 `[B, 362]`, each adding up to 1."""
    bit = torch.arange(8, dtype=torch.uint8, device=policy.moves.device)
    tried = (policy.moves[:, :, None] >> bit & 1).flatten(1)[:, :N_MOVES].bool()
    dense = torch.zeros(tried.shape, device=tried.device)
    dense.masked_scatter_(tried, policy.values.float())
    return dense / dense.sum(1, keepdim=True)

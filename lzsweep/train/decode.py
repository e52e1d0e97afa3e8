"""From packed boards to network input, vectorised on whatever device holds the batch.

A packed position is eight frames, of T, T-1 .. T-7, each 46 pairs of bytes: eight points of black,
the same eight of white (point k = y * 19 + x is bit k % 8 of pair k // 8). Decoding transposes
these bits, so that a pair of bytes, the code, holds one point's history; applies one of the
board's eight symmetries, which are then mere permutations of codes; and looks up a point's 18
channels in a table of all codes: planes as the engine sees them (leela-zero
src/Network.cpp:935-966).

Looked up so, a point's channels lie side by side, as fast convolutions want them, and a batch is
written once: boards know few histories, whose rows of the table stay in the fastest cache.

Symmetries carry leelaz' numbers (Network.cpp:968-995): the new board at (x, y) shows the old one
at a point found by: if s & 4 swap x and y; if s & 2 mirror x; if s & 1 mirror y.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lzsweep.go.board import BOARD_SIZE, N_MOVES, N_POINTS, PASS
from lzsweep.go.chunks import N_HISTORY, PLANE_BYTES
from lzsweep.train.store import MOVER_WON, WHITE_TO_MOVE

N_PAIRS = PLANE_BYTES
N_SYMMETRIES = 8
N_PLANES = 2 * N_HISTORY + 2
_BITS = 8
_N_CODES = 2**16
# Swapping blocks of 4x4, then 2x2, then 1x1 bits transposes 8x8 of them (Hacker's Delight, 7-3).
_SWAPS = ((4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555))


class Policy(NamedTuple):
    """Policies as they lie in the store."""

    moves: Tensor  # uint8 [B, 46], a bit for each move that has any probability
    values: Tensor  # float16 [N] theirs, position by position


class Packed(NamedTuple):
    """B positions as they lie in the store."""

    frames: Tensor  # uint8 [8, B, 46, 2], the latest first; empty before the game began
    flags: Tensor  # uint8 [B]: white to move, side to move won, number of earlier frames
    move: Tensor  # int64 [B] in 0..361
    symmetry: Tensor  # uint8 [B]
    policy: Policy | None = None  # None: the moves are all there is


class Batch(NamedTuple):
    """What the network trains on."""

    planes: Tensor  # float32 [B, 18, 19, 19], 0 or 1; in memory a point's 18 lie side by side
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

    channels: Tensor  # float32 [2 * 65536, 18] of each code, black to move, then white
    bit: Tensor  # int32 [8, 361] where the new point's code comes from: which bit
    pair: Tensor  # int32 [8, 361] of which pair of bytes
    new_move: Tensor  # int64 [8, 362] where a move on the old board lies on the new one
    old_move: Tensor  # int64 [8, 362] the inverse


class _Scratch(NamedTuple):
    """Where `Decoder` works on n positions; fresh memory would cost more than the work."""

    frames: Tensor  # uint8 [8, n, 46, 2]
    swapped: Tensor  # int32 [4, n * 23], half of the frames
    symmetry: Tensor  # uint8 [n] of the batch that `source` was made for
    source: Tensor  # int64 [n, 361] where each point's code lies
    codes: Tensor  # int16 [n, 361]
    rows: Tensor  # int64 [n, 361] of the table of channels

    @classmethod
    def of(cls, n: int, device: torch.device) -> _Scratch:
        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        return cls(
            frames=empty(N_HISTORY, n, N_PAIRS, 2, dtype=torch.uint8),
            swapped=empty(N_HISTORY // 2, n * N_PAIRS // 2, dtype=torch.int32),
            symmetry=empty(n, dtype=torch.uint8).fill_(N_SYMMETRIES),  # none yet
            source=empty(n, N_POINTS, dtype=torch.int64),
            codes=empty(n, N_POINTS, dtype=torch.int16),
            rows=empty(n, N_POINTS, dtype=torch.int64),
        )


class Decoder:
    """Turns `Packed` into `Batch`, one at a time; holds 9 MB of tables on each device it met."""

    def __init__(self) -> None:
        self._tables = {torch.device("cpu"): _make_tables()}
        self._scratch = _Scratch.of(0, torch.device("cpu"))
        self._buffers = _Buffers()

    def _tables_on(self, device: torch.device) -> _Tables:
        if device not in self._tables:
            here = self._tables[torch.device("cpu")]
            self._tables[device] = _Tables(*(table.to(device) for table in here))
        return self._tables[device]

    def __call__(self, packed: Packed) -> Batch:
        device, n = packed.flags.device, len(packed.flags)
        tables = self._tables_on(device)
        if (len(self._scratch.rows), self._scratch.rows.device) != (n, device):
            self._scratch = _Scratch.of(n, device)
        symmetry = packed.symmetry.long()
        planes = self._look_up(tables, self._rows(tables, packed))
        if packed.policy is None:
            move = tables.new_move.view(-1)[symmetry * N_MOVES + packed.move]
        else:
            move = _spread_policy(packed.policy).gather(1, tables.old_move[symmetry])
        won = (packed.flags & MOVER_WON) != 0
        board = planes.view(n, BOARD_SIZE, BOARD_SIZE, N_PLANES)
        return Batch(board.permute(0, 3, 1, 2), move, won.float() * 2 - 1)

    def _rows(self, tables: _Tables, packed: Packed) -> Tensor:
        """Return int64 `[B, 361]`: the row of the table of channels for each point."""
        scratch = self._scratch
        source = self._source(tables, packed.symmetry).view(-1)
        every, codes = _transpose(packed.frames, scratch), scratch.codes.view(-1)
        if _numpy_can(every):
            np.take(every.numpy(), source.numpy(), out=codes.numpy(), mode="clip")
        else:
            torch.index_select(every, 0, source, out=codes)
        # Codes are signed, for want of better in torch, so each side's half begins in its middle.
        half = (packed.flags & WHITE_TO_MOVE).long() * _N_CODES + _N_CODES // 2
        return torch.add(scratch.codes, half[:, None], out=scratch.rows)

    def _source(self, tables: _Tables, symmetry: Tensor) -> Tensor:
        """Return int64 `[B, 361]`: where each point's code lies among the transposed ones."""
        scratch = self._scratch
        # Most batches are turned as the one before. A GPU is faster than its answer would be.
        if _numpy_can(symmetry) and torch.equal(symmetry, scratch.symmetry):
            return scratch.source
        scratch.symmetry.copy_(symmetry)
        n_codes = len(symmetry) * N_PAIRS  # of each bit
        first = torch.arange(0, n_codes, N_PAIRS, device=symmetry.device)
        places = (tables.bit * n_codes + tables.pair).index_select(0, symmetry.int())
        return torch.add(places, first[:, None], out=scratch.source)

    def _look_up(self, tables: _Tables, rows: Tensor) -> Tensor:
        """Return float32 `[B * 361, 18]`."""
        if not _numpy_can(rows):
            return tables.channels.index_select(0, rows.view(-1))
        # NumPy copies short rows faster than torch does.
        out = self._buffers.lend(rows.numel())
        np.take(tables.channels.numpy(), rows.view(-1).numpy(), axis=0, out=out, mode="clip")
        return torch.from_numpy(out)


class _Buffers:
    """Memory of the planes, lent anew once no tensor shares it.

    A batch is so large that the allocator would give it back and fetch it again, page by page,
    each of which costs more than decoding into it.
    """

    def __init__(self) -> None:
        self._lent: list[tuple[NDArray[np.float32], ref[NDArray[np.float32]]]] = []

    def lend(self, n_rows: int) -> NDArray[np.float32]:
        """Return `[n_rows, 18]`, any values; lent to nobody else while a tensor shares it."""
        free = [whole for whole, lent in self._lent if lent() is None and len(whole) >= n_rows]
        # What was lent last is in the cache still.
        whole = free[-1] if free else np.empty((n_rows, N_PLANES), np.float32)
        part = whole[:n_rows]
        # One more than this: loops hold a batch while they ask for the next.
        others = [pair for pair in self._lent if pair[0] is not whole][-1:]
        self._lent = [*others, (whole, ref(part))]
        return part


@cache
def _make_tables() -> _Tables:
    """The tables on the CPU, once a process and the processes that are forked from it."""
    old_move = symmetry_table()
    point = old_move[:, :N_POINTS].int()
    bit, pair = point % _BITS, point // _BITS
    return _Tables(_channel_table(), bit, pair, old_move.argsort(dim=1), old_move)


def _channel_table() -> Tensor:
    """Return float32 `[2 * 65536, 18]`: the channels of each code, in the order of signed ones."""
    codes = np.arange(-_N_CODES // 2, _N_CODES // 2).astype("<i2")
    pairs = codes.view(np.uint8).reshape(_N_CODES, 2)
    bits = np.unpackbits(pairs, axis=1, bitorder="little").reshape(_N_CODES, 2, N_HISTORY)
    table = np.zeros((2, _N_CODES, N_PLANES), np.float32)
    table[0, :, :-2] = bits.reshape(_N_CODES, -1)
    table[1, :, :-2] = bits[:, ::-1].reshape(_N_CODES, -1)  # one's own stones come first
    table[0, :, -2] = table[1, :, -1] = 1
    return torch.from_numpy(table).flatten(0, 1)


def _numpy_can(tensor: Tensor) -> bool:
    """Whether NumPy may work in this tensor's memory; elsewhere torch does the same."""
    return tensor.device.type == "cpu"


def _transpose(frames: Tensor, scratch: _Scratch) -> Tensor:
    """Return the codes, int16 `[8 * B * 46]`: bit by bit, then position by position."""
    scratch.frames.copy_(frames)
    words: Any = scratch.frames.view(N_HISTORY, -1).view(torch.int32)
    swapped: Any = scratch.swapped
    if _numpy_can(frames):
        # The same memory, but half of torch's time for each step below.
        words, swapped = words.numpy(), swapped.numpy()
    for distance, mask in _SWAPS:
        blocks = words.reshape(-1, 2, distance, words.shape[-1])
        first, second = blocks[:, 0], blocks[:, 1]
        part = swapped.reshape(first.shape)
        part[...] = first
        part >>= distance
        part ^= second
        part &= mask  # which also takes away the sign that shifting draws in
        second ^= part
        part <<= distance
        first ^= part
    return scratch.frames.view(-1).view(torch.int16)


def _spread_policy(policy: Policy) -> Tensor:
    """Return the policies, float32 `[B, 362]`, each adding up to 1."""
    bit = torch.arange(8, dtype=torch.uint8, device=policy.moves.device)
    tried = (policy.moves[:, :, None] >> bit & 1).flatten(1)[:, :N_MOVES].bool()
    dense = torch.zeros(tried.shape, device=tried.device)
    dense.masked_scatter_(tried, policy.values.float())
    return dense / dense.sum(1, keepdim=True)

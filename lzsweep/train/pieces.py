"""Games and chunk records as pieces of a store: frames, positions that point into them, policies.

The history of a position is the frames right before its own. So consecutive positions of a game
share their frames, be they from SGF or from a chunk that keeps games whole; a record of a shuffled
chunk brings the boards of its history along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lzsweep.go.archive import Damage
from lzsweep.go.board import N_MOVES, WHITE
from lzsweep.go.chunks import N_HISTORY, PLANE_BYTES, Records, goes_on
from lzsweep.go.sgf import Drop, Game
from lzsweep.train.store import (
    HISTORY_SHIFT,
    MAX_HISTORY,
    MOVER_WON,
    UNPLAYED,
    WHITE_TO_MOVE,
    Store,
    part_bytes,
)

DAMAGED_RECORD = "damaged record"
_MAX_GAME = 2000  # positions; what goes on longer is no game, and must not be gathered for ever


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some whole games, G of them with N positions, in the shapes of the store."""

    frames: bytes  # [F * 92] black's stones, then white's
    frame: NDArray[np.uint32]  # [N] into these frames
    move: NDArray[np.uint16]  # [N]
    flags: NDArray[np.uint8]  # [N]
    length: NDArray[np.int64]  # [G] positions of each game
    keys: list[int]  # [G] 64 bits of each game's content hash
    policy: NDArray[np.float16] | None = None  # [N, 362]; None: the moves are all there is


def game_piece(game: Game) -> Piece:
    n = len(game.moves)
    colours = np.frombuffer(game.colours, dtype=np.uint8)
    history = np.minimum(np.arange(n), MAX_HISTORY)
    return Piece(
        frames=game.frames,
        frame=np.arange(n, dtype=np.uint32),
        move=np.asarray(game.moves, dtype=np.uint16),
        flags=_flags(colours, colours == game.winner, history),
        length=np.array([n]),
        keys=[int.from_bytes(game.key[:8], "little")],
    )


def chunk_pieces(items: Iterable[Records | Damage]) -> Iterator[Piece | Drop]:
    """Put the records of chunks together to games; damaged ones become drops."""
    open_game: Records | None = None
    for item in items:
        if isinstance(item, Damage):
            yield Drop(item.source, DAMAGED_RECORD, item.detail)
            continue
        records = item if open_game is None else _join(open_game, item)
        starts = np.flatnonzero(~goes_on(records))
        last = int(starts[-1])
        if len(records) - last > _MAX_GAME:
            last = len(records)
        if last:
            yield _records_piece(records.take(slice(0, last)), starts[starts < last])
        open_game = records.take(slice(last, None)) if last < len(records) else None
    if open_game is not None:
        yield _records_piece(open_game, np.array([0]))


def _records_piece(records: Records, starts: NDArray[np.int64]) -> Piece:
    is_first = np.zeros(len(records), bool)
    is_first[starts] = True
    mine, theirs = records.planes[:, :N_HISTORY], records.planes[:, N_HISTORY:]
    # Behind the oldest board with a stone there is nothing to remember.
    filled: NDArray[np.bool_] = np.any(mine | theirs, axis=2)
    history = N_HISTORY - 1 - filled[:, ::-1].argmax(axis=1)
    history[~filled.any(axis=1)] = 0
    n_frames = np.where(is_first, history + 1, 1)
    end = np.cumsum(n_frames)
    row = np.repeat(np.arange(len(records)), n_frames)
    age = np.repeat(end, n_frames) - 1 - np.arange(end[-1])
    frames = np.empty((end[-1], 2, PLANE_BYTES), np.uint8)
    side = records.side[row].astype(np.intp)
    frames[np.arange(end[-1]), side] = mine[row, age]
    frames[np.arange(end[-1]), 1 - side] = theirs[row, age]
    policy = records.policy.astype(np.float16)
    move = policy.argmax(axis=1).astype(np.uint16)
    certain = (policy[np.arange(len(move)), move] == 1) & ((policy != 0).sum(axis=1) == 1)
    move[~certain] = UNPLAYED
    flags = _flags(records.side, records.won == 1, history)
    length = np.diff(np.append(starts, len(records)))
    return Piece(
        frames=frames.tobytes(),
        frame=(end - 1).astype(np.uint32),
        move=move,
        flags=flags,
        length=length,
        keys=_keys(records, starts, length),
        policy=None if certain.all() else policy,
    )


def _keys(records: Records, starts: NDArray[np.int64], length: NDArray[np.int64]) -> list[int]:
    keys = []
    for start, n in zip(starts.tolist(), length.tolist(), strict=True):
        rows = slice(start, start + n)
        content = hashlib.blake2b(records.planes[rows].tobytes(), digest_size=8)
        content.update(records.side[rows].tobytes() + records.won[rows].tobytes())
        content.update(records.policy[rows].astype("<f4").tobytes())
        keys.append(int.from_bytes(content.digest(), "little"))
    return keys


def game_records(store: Store, game: int) -> Records:
    """A game of a store in the shape of the chunk formats."""
    rows = slice(int(store.game_start[game]), int(store.game_start[game + 1]))
    flags, move = store.flags[rows], store.move[rows]
    age = np.arange(N_HISTORY)
    known = age <= (flags >> HISTORY_SHIFT)[:, None]
    frame = np.where(known, store.position_frame[rows].astype(np.int64)[:, None] - age, 0)
    boards = part_bytes(store.frames[frame])
    side: NDArray[np.uint8] = flags & np.uint8(WHITE_TO_MOVE)
    row = np.arange(len(move))
    planes = np.concatenate([boards[row, :, side], boards[row, :, 1 - side]], axis=1)
    if store.policy_moves is None or store.policy_start is None or store.policy_values is None:
        policy = certain_policy(move).astype(np.float32)
    else:
        bits = np.unpackbits(store.policy_moves[rows], axis=1, count=N_MOVES, bitorder="little")
        policy = np.zeros(bits.shape, np.float32)
        values = slice(int(store.policy_start[rows.start]), int(store.policy_start[rows.stop]))
        policy[bits.astype(bool)] = store.policy_values[values]
        policy /= policy.sum(axis=1, keepdims=True)
    return Records(planes, side, policy, (flags & MOVER_WON != 0).astype(np.uint8))


def pack_policy(policy: NDArray[np.float16]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Pack `[N, 362]` probabilities into the moves that have any, as bits, and their values."""
    tried = policy > 0
    return np.packbits(tried, axis=1, bitorder="little"), policy[tried]


def certain_policy(move: NDArray[np.uint16]) -> NDArray[np.float16]:
    """The policy `[N, 362]` of moves that were just played."""
    policy = np.zeros((len(move), N_MOVES), np.float16)
    policy[np.arange(len(move)), move] = 1
    return policy


def _flags(
    side: NDArray[np.uint8], won: NDArray[np.bool_], history: NDArray[np.int64]
) -> NDArray[np.uint8]:
    to_move = np.where(side == WHITE, WHITE_TO_MOVE, 0)
    return (to_move | np.where(won, MOVER_WON, 0) | history << HISTORY_SHIFT).astype(np.uint8)


def _join(first: Records, second: Records) -> Records:
    return Records(
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("planes", "side", "policy", "won")
        )
    )

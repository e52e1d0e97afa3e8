r"""The store: packed positions on disk, memory-mapped and shared by every training of a machine.

File layout, little-endian:

    0   magic  b"LZSTORE\n"
    8   uint32 version
    12  uint32 length of the header
    16  uint32 CRC-32 of the header
    20  header: JSON, padded with blanks up to the first section
    ..  sections, each starting at a multiple of 64

    frames          uint8  [F, 92]  board states: 46 pairs of bytes, eight points of black and the
                                    same eight of white; point k (y * 19 + x) is bit k % 8 of pair
                                    k // 8. Frame 0 is empty
    position_frame  uint32 [P]      the frame in which the position's move is played
    move            uint16 [P]      the move played, 0..361; 0xFFFF where only a policy is known
    flags           uint8  [P]      bit 0 white to move, bit 1 the side to move won, bits 2-4 how
                                    many frames right before this one are its history
    game_start      uint64 [G + 1]  first position of each game
    game_hash       uint64 [G]      content hash of the game, by which the split is made

and, if the policy of any position is more than one move, for all positions:

    policy_moves    uint8   [P, 46]  the moves of the policy: move k is bit k % 8 of byte k // 8
    policy_start    uint64  [P + 1]  where the position's probabilities begin
    policy_values   float16 [V]      of the moves, in their order: two bytes for each move that
                                     has any, and a search tries but a part of them

The JSON names the sections (dtype, shape, offset, CRC-32) and describes the content. A position of
a game costs 99 bytes. Nothing here imports torch: the controller of a sweep builds stores too.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lzsweep.errors import DataError
from lzsweep.go.board import N_MOVES
from lzsweep.go.chunks import N_HISTORY
from lzsweep.go.sgf import FRAME_BYTES

MAGIC = b"LZSTORE\n"
VERSION = 2
ALIGNMENT = 64
HEADER_BYTES = 4096  # reserved, so that frames can be written before their number is known
HEADER_START = len(MAGIC) + 12
MAX_HISTORY = N_HISTORY - 1
SPLITS = ("train", "val", "test")

WHITE_TO_MOVE = 1  # flag bit 0
MOVER_WON = 2  # flag bit 1
HISTORY_SHIFT = 2  # flag bits 2-4

UNPLAYED = 0xFFFF
"""The move where only a policy is known."""

POLICY_BYTES = (N_MOVES + 7) // 8

SECTIONS = {
    "frames": "|u1",
    "position_frame": "<u4",
    "move": "<u2",
    "flags": "|u1",
    "game_start": "<u8",
    "game_hash": "<u8",
}
POLICY_SECTIONS = {
    "policy_moves": "|u1",
    "policy_start": "<u8",
    "policy_values": "<f2",
}
WIDTHS = {"frames": FRAME_BYTES, "policy_moves": POLICY_BYTES}
"""Bytes a row of the sections that are tables."""


class StoreVersionError(DataError):
    """A sound store of another version; `age` is "obsolete" or "newer"."""

    def __init__(self, path: Path, number: int) -> None:
        self.age = "newer" if number > VERSION else "obsolete"
        author, way_out = (
            ("a newer", "update lzsweep, or delete it")
            if number > VERSION
            else ("an older", "delete it, and import its games anew if you still want them")
        )
        super().__init__(
            f"This lzsweep reads stores of version {VERSION}, but {path} has version {number}, "
            f"as {author} lzsweep wrote it: {way_out}."
        )


@dataclass(frozen=True)
class Store:
    """An open store. The arrays are read-only views of the mapped file."""

    path: Path
    info: dict[str, Any]  # version, created_by, source, n_games, n_positions, drops, examples
    sections: dict[str, Any]  # by name: dtype, shape, offset and CRC-32
    frames: NDArray[np.uint8]  # [F, 92]
    position_frame: NDArray[np.uint32]  # [P]
    move: NDArray[np.uint16]  # [P]
    flags: NDArray[np.uint8]  # [P]
    game_start: NDArray[np.uint64]  # [G + 1]
    game_hash: NDArray[np.uint64]  # [G]
    policy_moves: NDArray[np.uint8] | None = None  # [P, 46]
    policy_start: NDArray[np.uint64] | None = None  # [P + 1]
    policy_values: NDArray[np.float16] | None = None  # [V]

    @property
    def n_positions(self) -> int:
        return len(self.move)

    @property
    def n_games(self) -> int:
        return len(self.game_hash)

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = False) -> Store:
        """Map a store; costs the same for any size unless `verify` reads it all.

        Args:
            path: the file.
            verify: also compare every section with its checksum and see that all fits together.

        Raises:
            StoreVersionError: another version of lzsweep wrote it.
            DataError: the file is missing or damaged.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                header = _read_header(file, path)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as e:
            raise DataError(f"A store must be a readable file, but {path}: {e.strerror}.") from e
        wanted = dict(SECTIONS)
        if any(name in header["sections"] for name in POLICY_SECTIONS):
            wanted |= POLICY_SECTIONS
        arrays = {name: _section(mapped, header, name, path) for name in wanted}
        _check_fit(arrays, path)
        if verify:
            _verify(arrays, header, path)
        info = {key: value for key, value in header.items() if key != "sections"}
        return cls(path=path, info=info, sections=header["sections"], **arrays)

    def assign_games(
        self, val_fraction: float, test_fraction: float
    ) -> dict[str, NDArray[np.int64]]:
        """Assign every game to train, val or test by its hash; adding games moves none."""
        u = self.game_hash.astype(np.float64) / 2.0**64
        which = np.where(u < test_fraction, 2, np.where(u < test_fraction + val_fraction, 1, 0))
        return {name: np.flatnonzero(which == i) for i, name in enumerate(SPLITS)}

    def split_games(
        self, val_fraction: float, test_fraction: float
    ) -> dict[str, NDArray[np.int64]]:
        """Assign the games, each split getting some.

        Raises:
            DataError: a split holds no game.
        """
        if val_fraction <= 0 or test_fraction <= 0 or val_fraction + test_fraction >= 1:
            raise DataError(
                "`val_fraction > 0`, `test_fraction > 0` and `val_fraction + test_fraction < 1` "
                f"must hold for the data, but got {val_fraction=}, {test_fraction=}."
            )
        split = self.assign_games(val_fraction, test_fraction)
        if empty := [name for name, games in split.items() if not len(games)]:
            counts = ", ".join(f"{name} {len(games)}" for name, games in split.items())
            raise DataError(
                f"Each of train, val and test needs a game, but {', '.join(empty)} got none of "
                f"the {self.n_games} games of {self.info['source']} ({counts}): add games or "
                f"raise data.val_fraction={val_fraction} / data.test_fraction={test_fraction}."
            )
        return split

    def positions_of(self, games: NDArray[np.int64]) -> NDArray[np.int32]:
        """The positions of these games, game by game; 4 bytes each: every process has them."""
        start = self.game_start[games].astype(np.int64)
        length = self.game_start[games + 1].astype(np.int64) - start
        first = np.cumsum(length) - length
        positions = np.arange(length.sum(), dtype=np.int32)
        positions += np.repeat((start - first).astype(np.int32), length)
        return positions


def _read_header(file: BinaryIO, path: Path) -> dict[str, Any]:
    start = file.read(HEADER_START)
    if len(start) < HEADER_START or not start.startswith(MAGIC):
        raise DataError(f"A store begins with {MAGIC!r}, but {path} does not: not a store.")
    number, length, crc = (int(n) for n in np.frombuffer(start, "<u4", offset=len(MAGIC)))
    size = os.fstat(file.fileno()).st_size
    text = file.read(length) if length <= size else b""
    if len(text) < length or zlib.crc32(text) != crc:
        raise damaged(path, "its header does not match its checksum")
    if number != VERSION:
        raise StoreVersionError(path, number)
    try:
        header = json.loads(text)
        described = header["version"] == number and isinstance(header["sections"], dict)
        told = header["bytes"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise damaged(path, "its header is unreadable") from e
    if not described:
        raise damaged(path, "its header is unreadable")
    if told != size:
        raise damaged(path, f"it has {size} bytes where its header says {told}")
    return dict(header)


def _section(mapped: mmap.mmap, header: dict[str, Any], name: str, path: Path) -> NDArray[Any]:
    try:
        entry = header["sections"][name]
        offset, *shape = (int(n) for n in (entry["offset"], *entry["shape"]))
        if min(offset, *shape) < 0 or shape[1:] != ([WIDTHS[name]] if name in WIDTHS else []):
            raise ValueError(f"shape {shape}")
        dtype = np.dtype((SECTIONS | POLICY_SECTIONS)[name])
        flat = np.frombuffer(mapped, dtype, count=int(np.prod(shape)), offset=offset)
        return flat.reshape(shape)
    except (KeyError, ValueError, TypeError, OverflowError) as e:
        raise damaged(path, f"its section `{name}` is unreadable") from e


def _check_fit(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    per_position = ("position_frame", "move", "flags", "policy_moves")
    n_positions = {len(arrays[name]) for name in per_position if name in arrays}
    start = arrays["game_start"]
    fits = len(start) == len(arrays["game_hash"]) + 1 and n_positions == {int(start[-1])}
    if fits and "policy_start" in arrays:
        ends = arrays["policy_start"]
        fits = len(ends) == int(start[-1]) + 1 and int(ends[-1]) == len(arrays["policy_values"])
    if not fits or not n_positions - {0}:
        raise damaged(path, "its sections do not fit together")


def _verify(arrays: dict[str, NDArray[Any]], header: dict[str, Any], path: Path) -> None:
    for name, array in arrays.items():
        if zlib.crc32(np.ascontiguousarray(array).data) != header["sections"][name].get("crc32"):
            raise damaged(path, f"its section `{name}` does not match its checksum")
    if not all(_sense(arrays)):
        raise damaged(path, "its sections do not fit together")


def _sense(arrays: dict[str, NDArray[Any]]) -> Iterator[bool]:
    """What a reader relies on, one after the other."""
    history, frame = arrays["flags"] >> HISTORY_SHIFT, arrays["position_frame"]
    yield int(history.max()) <= MAX_HISTORY and bool((history <= frame).all())
    yield int(frame.max()) < len(arrays["frames"])
    yield _rises(arrays["game_start"])
    unplayed = arrays["move"] >= N_MOVES
    if "policy_start" not in arrays:
        yield not unplayed.any()
        return
    moves, starts = arrays["policy_moves"], arrays["policy_start"]
    counts = np.bitwise_count(moves).sum(axis=1)
    yield _rises(starts) and np.array_equal(np.diff(starts), counts) and int(counts.min()) > 0
    yield bool((arrays["move"][unplayed] == UNPLAYED).all())
    yield not (moves[:, -1] >> N_MOVES % 8).any()


def _rises(starts: NDArray[np.uint64]) -> bool:
    return int(starts[0]) == 0 and bool((starts[1:] >= starts[:-1]).all())


def pair_bytes(boards: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn boards `[..., 2, 46]`, black's stones then white's, into frames `[..., 92]`."""
    return np.ascontiguousarray(boards.swapaxes(-1, -2)).reshape(*boards.shape[:-2], -1)


def part_bytes(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn frames `[..., 92]` back into boards `[..., 2, 46]`, a view."""
    return frames.reshape(*frames.shape[:-1], -1, 2).swapaxes(-1, -2)


def damaged(path: Path, detail: str) -> DataError:
    """The error about a file that cannot be trusted."""
    return DataError(f"The store {path} is damaged: {detail}. Delete it; it will be built anew.")

r"""The store: packed positions on disk, memory-mapped and shared by every training of a machine.

File layout, little-endian:

    0   magic  b"LZSTORE\n"
    8   uint32 version
    12  uint32 length of the header
    16  uint32 CRC-32 of the header
    20  header: JSON, padded with blanks up to the first section
    ..  sections, each starting at a multiple of 64

    frames          uint8  [F, 92]  board states: black's stones in 46 bytes, then white's; point k
                                    (y * 19 + x) is bit k % 8 of byte k // 8. Frame 0 is empty
    position_frame  uint32 [P]      the frame in which the position's move is played
    move            uint16 [P]      the move played, 0..361
    flags           uint8  [P]      bit 0 white to move, bit 1 the side to move won, bits 2-4 how
                                    many frames right before this one are its history
    game_start      uint64 [G + 1]  first position of each game
    game_hash       uint64 [G]      content hash of the game, by which the split is made

The JSON names the sections (dtype, shape, offset, CRC-32) and describes the content. A position
costs 99 bytes. Nothing here imports torch: the controller of a sweep builds stores too.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lzsweep.errors import DataError
from lzsweep.go.archive import find_files
from lzsweep.go.board import WHITE
from lzsweep.go.sgf import FRAME_BYTES, Drop, Game, content_key, read_games

MAGIC = b"LZSTORE\n"
VERSION = 1
ALIGNMENT = 64
HEADER_BYTES = 4096  # reserved, so that frames can be written before their number is known
MAX_HISTORY = 7
SPLITS = ("train", "val", "test")
BUNDLED = "bundled"
BUNDLED_GAMES = Path(__file__).parents[1] / "data" / "gnugo_selfplay.sgf.gz"

WHITE_TO_MOVE = 1
MOVER_WON = 2
HISTORY_SHIFT = 2

SECTIONS = {
    "frames": "|u1",
    "position_frame": "<u4",
    "move": "<u2",
    "flags": "|u1",
    "game_start": "<u8",
    "game_hash": "<u8",
}

Paths = str | Path | Sequence[str | Path]
Progress = Callable[[int, int], None]  # (games so far, positions so far)


@dataclass(frozen=True)
class Store:
    """An open store. The arrays are read-only views of the mapped file."""

    path: Path
    info: dict[str, Any]  # version, created_by, source, n_games, n_positions, drops
    frames: NDArray[np.uint8]  # [F, 92]
    position_frame: NDArray[np.uint32]  # [P]
    move: NDArray[np.uint16]  # [P]
    flags: NDArray[np.uint8]  # [P]
    game_start: NDArray[np.uint64]  # [G + 1]
    game_hash: NDArray[np.uint64]  # [G]

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
            verify: also compare every section with its checksum.

        Raises:
            DataError: the file is missing, damaged or written by a newer lzsweep.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                header = _read_header(file, path)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as e:
            raise DataError(f"A store must be a readable file, but {path}: {e.strerror}.") from e
        arrays = {name: _section(mapped, header, name, path) for name in SECTIONS}
        _check_fit(arrays, path)
        if verify:
            _verify(arrays, header, path)
        info = {key: value for key, value in header.items() if key != "sections"}
        return cls(path=path, info=info, **arrays)

    def split_games(
        self, val_fraction: float, test_fraction: float
    ) -> dict[str, NDArray[np.int64]]:
        """Assign every game to train, val or test by its hash; adding games moves none.

        Raises:
            DataError: a split holds no game.
        """
        if val_fraction <= 0 or test_fraction <= 0 or val_fraction + test_fraction >= 1:
            raise DataError(
                "`val_fraction > 0`, `test_fraction > 0` and `val_fraction + test_fraction < 1` "
                f"must hold for the data, but got {val_fraction=}, {test_fraction=}."
            )
        u = self.game_hash.astype(np.float64) / 2.0**64
        which = np.where(u < test_fraction, 2, np.where(u < test_fraction + val_fraction, 1, 0))
        split = {name: np.flatnonzero(which == i) for i, name in enumerate(SPLITS)}
        if empty := [name for name, games in split.items() if not len(games)]:
            counts = ", ".join(f"{name} {len(games)}" for name, games in split.items())
            raise DataError(
                f"Each of train, val and test needs a game, but {', '.join(empty)} got none of "
                f"the {self.n_games} games of {self.info['source']} ({counts}): add games or "
                f"raise data.val_fraction={val_fraction} / data.test_fraction={test_fraction}."
            )
        return split

    def positions_of(self, games: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of these games, game by game."""
        start = self.game_start[games].astype(np.int64)
        length = self.game_start[games + 1].astype(np.int64) - start
        first = np.cumsum(length) - length
        positions: NDArray[np.int64] = np.arange(length.sum()) + np.repeat(start - first, length)
        return positions


def build_store(
    target: Path | str,
    games: Iterable[Game | Drop],
    *,
    source: str,
    progress: Progress | None = None,
) -> Store:
    """Write the games into a store and open it. The file appears only when it is complete.

    Args:
        target: the file to write; what lies there is replaced.
        games: games, in the order in which they are stored, among the reader's drops.
        source: where the games come from, for people.
        progress: called after each game.

    Raises:
        DataError: no usable game, or the folder cannot be written.
    """
    target = Path(target)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            _write(file, games, source, progress)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as e:
        raise DataError(f"The store must be writable, but {target}: {e.strerror}.") from e
    finally:
        partial.unlink(missing_ok=True)
    return Store.open(target)


def ensure_store(path: Paths, cache_dir: Path | str, progress: Progress | None = None) -> Path:
    """Give the store of these games, building it the first time on this machine.

    However many processes ask at once, one builds and the others wait for it. The store is found
    by the content of the game files, so renaming or copying them builds nothing anew.

    Args:
        path: an SGF file, archive, folder or glob, several of them, a `.store` file, or
            "bundled" for the games that come with the package.
        cache_dir: folder of the stores; made if it is not there.
        progress: called after each game while the store is built here.

    Raises:
        DataError: a path is missing, no game is usable, or `cache_dir` cannot be written.
    """
    if isinstance(path, str | Path) and Path(path).suffix == ".store":
        return Store.open(Path(path).expanduser()).path
    source = "the bundled games" if path == BUNDLED else _describe(path)
    paths = BUNDLED_GAMES if path == BUNDLED else path
    cache = Path(cache_dir).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        key = _content_key(paths, cache)
        target = cache / f"{key}.store"
        if not target.exists():
            with FileLock(cache / f"{key}.lock"):
                if not target.exists():
                    games = read_games(paths)
                    build_store(target, games, source=source, progress=progress)
    except OSError as e:
        raise DataError(
            f"The folder of the stores must be writable, but {cache}: {e.strerror}; "
            "set data.cache_dir."
        ) from e
    return target


def _describe(path: Paths) -> str:
    return str(path) if isinstance(path, str | Path) else ", ".join(str(part) for part in path)


def _content_key(paths: Paths, cache: Path) -> str:
    """The content key, hashed anew only when a file's name, size or time has changed."""
    seen = hashlib.blake2b(digest_size=16)
    for file in find_files(paths):
        stat = file.stat()
        seen.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    sidecar = cache / f"{seen.hexdigest()}.key"
    try:
        return sidecar.read_text()
    except FileNotFoundError:
        key = content_key(paths)
        partial = sidecar.with_suffix(f".{os.getpid()}")
        partial.write_text(key)
        partial.replace(sidecar)
        return key


def _write(
    file: BinaryIO, games: Iterable[Game | Drop], source: str, progress: Progress | None
) -> None:
    drops: Counter[str] = Counter()
    moves: list[NDArray[np.uint16]] = []
    flags: list[NDArray[np.uint8]] = []
    hashes: list[int] = []
    starts = [0]
    file.seek(HEADER_BYTES)
    empty_board = bytes(FRAME_BYTES)
    file.write(empty_board)
    frames_crc = zlib.crc32(empty_board)
    for game in games:
        if isinstance(game, Drop):
            drops[game.reason] += 1
            continue
        file.write(game.frames)
        frames_crc = zlib.crc32(game.frames, frames_crc)
        moves.append(np.asarray(game.moves, dtype="<u2"))
        flags.append(_flags(game))
        hashes.append(int.from_bytes(game.key[:8], "little"))
        starts.append(starts[-1] + len(game.moves))
        if progress is not None:
            progress(len(hashes), starts[-1])
    if not hashes:
        counted = ", ".join(f"{reason}: {n}" for reason, n in sorted(drops.items()))
        raise DataError(
            f"Training needs at least one usable game, but {source} holds none "
            f"({'dropped: ' + counted if counted else 'no game at all'}): "
            "point data.path at 19x19 SGF games with a result."
        )
    n_positions = starts[-1]
    sections = {
        "frames": {
            "dtype": SECTIONS["frames"],
            "shape": [n_positions + 1, FRAME_BYTES],
            "offset": HEADER_BYTES,
            "crc32": frames_crc,
        }
    }
    arrays: dict[str, NDArray[Any]] = {
        "position_frame": np.arange(1, n_positions + 1, dtype=SECTIONS["position_frame"]),
        "move": np.concatenate(moves),
        "flags": np.concatenate(flags),
        "game_start": np.array(starts, dtype=SECTIONS["game_start"]),
        "game_hash": np.array(hashes, dtype=SECTIONS["game_hash"]),
    }
    for name, array in arrays.items():
        file.seek(-file.tell() % ALIGNMENT, os.SEEK_CUR)
        sections[name] = {
            "dtype": SECTIONS[name],
            "shape": list(array.shape),
            "offset": file.tell(),
            "crc32": zlib.crc32(array.tobytes()),
        }
        file.write(array.tobytes())
    header = {
        "version": VERSION,
        "created_by": f"lzsweep {version('lzsweep')}",
        "source": source[:1000],
        "n_games": len(hashes),
        "n_positions": n_positions,
        "drops": dict(drops),
        "bytes": file.tell(),
        "sections": sections,
    }
    _write_header(file, header)


def _flags(game: Game) -> NDArray[np.uint8]:
    colours = np.frombuffer(game.colours, dtype=np.uint8)
    history = np.minimum(np.arange(len(colours)), MAX_HISTORY)
    to_move = np.where(colours == WHITE, WHITE_TO_MOVE, 0)
    won = np.where(colours == game.winner, MOVER_WON, 0)
    return (to_move | won | history << HISTORY_SHIFT).astype(np.uint8)


def _write_header(file: BinaryIO, header: dict[str, Any]) -> None:
    start = len(MAGIC) + 12
    text = json.dumps(header).encode().ljust(HEADER_BYTES - start)
    assert len(text) == HEADER_BYTES - start, "the reserved header is too small"
    numbers = np.array([VERSION, len(text), zlib.crc32(text)], dtype="<u4")
    file.seek(0)
    file.write(MAGIC + numbers.tobytes() + text)


def _read_header(file: BinaryIO, path: Path) -> dict[str, Any]:
    start = file.read(len(MAGIC) + 12)
    if len(start) < len(MAGIC) + 12 or not start.startswith(MAGIC):
        raise DataError(f"A store begins with {MAGIC!r}, but {path} does not: not a store.")
    number, length, crc = (int(n) for n in np.frombuffer(start, "<u4", offset=len(MAGIC)))
    text = file.read(length)
    if len(text) < length or zlib.crc32(text) != crc:
        raise _damaged(path, "its header does not match its checksum")
    if number > VERSION:
        raise DataError(
            f"This lzsweep reads stores up to version {VERSION}, but {path} has version "
            f"{number}: written by a newer lzsweep. Update lzsweep or delete the file."
        )
    header: dict[str, Any] = json.loads(text)
    size = os.fstat(file.fileno()).st_size
    if header["version"] != number or header["bytes"] != size:
        raise _damaged(path, f"it has {size} bytes where its header says {header['bytes']}")
    return header


def _section(mapped: mmap.mmap, header: dict[str, Any], name: str, path: Path) -> NDArray[Any]:
    try:
        entry = header["sections"][name]
        shape = tuple(entry["shape"])
        flat = np.frombuffer(
            mapped, np.dtype(SECTIONS[name]), count=int(np.prod(shape)), offset=entry["offset"]
        )
        return flat.reshape(shape)
    except (KeyError, ValueError) as e:
        raise _damaged(path, f"its section `{name}` is unreadable") from e


def _check_fit(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    n_positions = {len(arrays[name]) for name in ("position_frame", "move", "flags")}
    start = arrays["game_start"]
    if (
        len(start) != len(arrays["game_hash"]) + 1
        or n_positions != {int(start[-1])}
        or arrays["frames"].shape[1:] != (FRAME_BYTES,)
    ):
        raise _damaged(path, "its sections do not fit together")


def _verify(arrays: dict[str, NDArray[Any]], header: dict[str, Any], path: Path) -> None:
    for name, array in arrays.items():
        if zlib.crc32(np.ascontiguousarray(array).data) != header["sections"][name]["crc32"]:
            raise _damaged(path, f"its section `{name}` does not match its checksum")


def _damaged(path: Path, detail: str) -> DataError:
    return DataError(f"The store {path} is damaged: {detail}. Delete it; it will be built anew.")

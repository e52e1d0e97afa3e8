"""From games and chunks to their store: found by content, or built once per machine.

A store's name is its key: a hash of what the source files hold and of what was asked of them
(`strict`, the filter). So nothing is built twice, and no two choices share a file. A build
streams: its memory grows by some 30 bytes a position, whatever the size of the sources.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lzsweep.errors import DataError
from lzsweep.files import write_whole
from lzsweep.go.archive import content_digest, find_files
from lzsweep.go.chunks import PLANE_BYTES, read_chunks
from lzsweep.go.selection import Filter, select
from lzsweep.go.sgf import FRAME_BYTES, READER_VERSION, Drop, Game, content_key, read_games
from lzsweep.train.pieces import Piece, certain_policy, chunk_pieces, game_piece, pack_policy
from lzsweep.train.store import (
    ALIGNMENT,
    HEADER_BYTES,
    HEADER_START,
    MAGIC,
    POLICY_SECTIONS,
    SECTIONS,
    VERSION,
    WIDTHS,
    Store,
    pair_bytes,
)

BUNDLED = "bundled"
BUNDLED_GAMES = Path(__file__).parents[1] / "data" / "gnugo_selfplay.sgf.gz"
KINDS = ("sgf", "chunks")

# Part of the key of every store of chunks: a change in what is read must change it.
_CHUNKS_VERSION = b"chunks 1"
_EXAMPLE_CHARS = 120
_SLICE = 1 << 14

Paths = str | Path | Sequence[str | Path]
Progress = Callable[[int, int], None]  # (games so far, positions so far)


def ensure_store(
    path: Paths,
    cache_dir: Path | str,
    progress: Progress | None = None,
    *,
    kind: str = "sgf",
    strict: bool = False,
    filter: Mapping[str, Any] | None = None,
) -> Path:
    """Give the store of these games, building it the first time on this machine.

    However many processes ask at once, one builds and the others wait for it. The store is found
    by the content of the game files, so renaming or copying them builds nothing anew. One that
    has changed since this machine saw it last is verified first.

    Args:
        path: an SGF file, archive, folder or glob, or chunks, several of them, a `.store` file,
            or "bundled" for the games that come with the package.
        cache_dir: folder of the stores; made if it is not there.
        progress: called after each game while the store is built here.
        kind: what `path` holds, "sgf" or "chunks".
        strict: refuse also the games that leelaz cuts short or mislabels.
        filter: limits on games, as `Filter` takes them.

    Raises:
        DataError: a path is missing, no game is usable, or `cache_dir` cannot be written.
        ConfigError: a limit makes no sense.
    """
    cache = Path(cache_dir).expanduser()
    try:
        target = find_store(path, cache, kind=kind, strict=strict, filter=filter)
        cache.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            with FileLock(cache / f"{target.stem}.lock"):
                if not target.exists():
                    limits = Filter.of(filter)
                    source = _describe(path, strict, limits)
                    pieces = _read(path, kind, strict, limits)
                    build_store(target, pieces, source=source, progress=progress)
                    _mark(target, cache).touch()
        if not (mark := _mark(target, cache)).exists():
            Store.open(target, verify=True)
            mark.touch()
    except OSError as e:
        raise DataError(
            f"The folder of the stores must be writable, but {cache}: {e.strerror}; "
            "set data.cache_dir."
        ) from e
    return target


def find_store(
    path: Paths,
    cache_dir: Path | str,
    *,
    kind: str = "sgf",
    strict: bool = False,
    filter: Mapping[str, Any] | None = None,
) -> Path:
    """Where `ensure_store` keeps the store of these games, be it built or not.

    Raises:
        DataError, ConfigError: as `ensure_store`.
    """
    if kind not in KINDS:
        raise DataError(f"data.kind must be {' or '.join(KINDS)}, but got {kind!r}.")
    if isinstance(path, str | Path) and Path(path).suffix == ".store":
        return Store.open(Path(path).expanduser()).path
    limits = Filter.of(filter).limits()
    if kind == "chunks" and (strict or limits):
        raise DataError(
            "chunks tell nothing of their games, so data.strict and data.filter must be left out"
            f" with data.kind=chunks, but got strict={strict}, filter={limits}."
        )
    key = _content_key(BUNDLED_GAMES if path == BUNDLED else path, kind, Path(cache_dir))
    if strict or limits:
        asked = json.dumps([key, strict, limits], sort_keys=True)
        key = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    return Path(cache_dir).expanduser() / f"{key}-{VERSION}.store"


def build_store(
    target: Path | str,
    games: Iterable[Game | Piece | Drop],
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
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file, tempfile.TemporaryDirectory(dir=target.parent) as aside:
            writer = _Writer(file, Path(aside))
            for game in games:
                if isinstance(game, Drop):
                    writer.drop(game)
                    continue
                writer.add(game_piece(game) if isinstance(game, Game) else game)
                if progress is not None:
                    progress(len(writer.keys), writer.n_positions)
            writer.finish(source)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as e:
        raise DataError(f"The store must be writable, but {target}: {e.strerror}.") from e
    finally:
        partial.unlink(missing_ok=True)
    return Store.open(target)


def _read(path: Paths, kind: str, strict: bool, limits: Filter) -> Iterator[Game | Piece | Drop]:
    if kind == "chunks":
        yield from chunk_pieces(read_chunks(path))
    else:
        paths = BUNDLED_GAMES if path == BUNDLED else path
        yield from select(read_games(paths, strict=strict), limits)


def _describe(path: Paths, strict: bool, limits: Filter) -> str:
    parts = [path] if isinstance(path, str | Path) else path
    names = "the bundled games" if path == BUNDLED else ", ".join(map(str, parts))
    asked = ["strict"] if strict else []
    for name, value in limits.limits().items():
        asked.append(f"{name}={list(value) if isinstance(value, tuple) else value}")
    return f"{names} ({', '.join(asked)})" if asked else names


def _content_key(paths: Paths, kind: str, cache: Path) -> str:
    """The content key, hashed anew only when a file's name, size or time has changed."""
    cache = cache.expanduser()
    files = find_files(paths, ".gz" if kind == "chunks" else ".sgf")
    seen = hashlib.blake2b(kind.encode() + READER_VERSION + _CHUNKS_VERSION, digest_size=16)
    for file in files:
        stat = file.stat()
        seen.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    sidecar = cache / f"{seen.hexdigest()}.key"
    try:
        return sidecar.read_text()
    except OSError:
        if kind == "chunks":
            digest = _CHUNKS_VERSION + content_digest(files)
            key = hashlib.blake2b(digest, digest_size=16).hexdigest()
        else:
            key = content_key(paths)
        with contextlib.suppress(OSError):  # it only saves time; who builds will say
            write_whole(sidecar, key.encode())
        return key


def _mark(store: Path, cache: Path) -> Path:
    """The file that says that this very file was found sound."""
    stat = store.stat()
    seen = f"{store.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    return cache / f"{hashlib.blake2b(seen.encode(), digest_size=16).hexdigest()}.sound"


class _Writer:
    """Writes frames as they come; keeps the few bytes of each position until the end."""

    def __init__(self, file: BinaryIO, aside: Path) -> None:
        self._file = file
        self._aside = aside
        self._drops: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._frame: list[NDArray[np.uint32]] = []
        self._move: list[NDArray[np.uint16]] = []
        self._flags: list[NDArray[np.uint8]] = []
        self._length: list[NDArray[np.int64]] = []
        self.keys: list[int] = []
        self.n_positions = 0
        self._n_frames = 0
        self._frames_crc = 0
        self._policies: _Policies | None = None
        file.seek(HEADER_BYTES)
        self._add_frames(np.zeros(FRAME_BYTES, np.uint8))

    def drop(self, drop: Drop) -> None:
        self._drops[drop.reason] += 1
        self._examples.setdefault(drop.reason, f"{drop.source}: {drop.detail}"[:_EXAMPLE_CHARS])

    def add(self, piece: Piece) -> None:
        if piece.policy is not None and self._policies is None:
            self._policies = _Policies(self._aside)
            for moves in self._move:
                self._policies.add(certain_policy(moves))
        if self._policies is not None:
            policy = certain_policy(piece.move) if piece.policy is None else piece.policy
            self._policies.add(policy)
        self._frame.append(piece.frame + np.uint32(self._n_frames))
        boards = np.frombuffer(piece.frames, np.uint8).reshape(-1, 2, PLANE_BYTES)
        self._add_frames(pair_bytes(boards))
        self._move.append(piece.move)
        self._flags.append(piece.flags)
        self._length.append(piece.length)
        self.keys += piece.keys
        self.n_positions += len(piece.move)

    def finish(self, source: str) -> None:
        if not self.keys:
            counted = ", ".join(f"{reason}: {n}" for reason, n in sorted(self._drops.items()))
            raise DataError(
                f"Training needs at least one usable game, but {source} holds none "
                f"({'dropped: ' + counted if counted else 'no game at all'}): "
                "point data.path at 19x19 SGF games with a result, or with data=chunks at chunks."
            )
        shape = [self._n_frames, FRAME_BYTES]
        sections = {"frames": _entry("frames", shape, HEADER_BYTES, self._frames_crc)}
        starts = np.concatenate([[0], np.cumsum(np.concatenate(self._length))])
        arrays: dict[str, Iterable[NDArray[Any]]] = {
            "position_frame": self._frame,
            "move": self._move,
            "flags": self._flags,
            "game_start": [starts],
            "game_hash": [np.array(self.keys, dtype=np.uint64)],
        }
        for name, parts in arrays.items():
            dtype = SECTIONS[name]
            data = (part.astype(dtype, copy=False).tobytes() for part in parts)
            sections[name] = self._section(name, data)
        if self._policies is not None:
            for name, stream in self._policies.finish().items():
                sections[name] = self._section(name, _blocks(stream))
        _write_header(self._file, self._header(source, sections))

    def _add_frames(self, frames: NDArray[np.uint8]) -> None:
        self._file.write(frames.data)
        self._frames_crc = zlib.crc32(frames.data, self._frames_crc)
        self._n_frames += frames.size // FRAME_BYTES

    def _section(self, name: str, data: Iterable[bytes]) -> dict[str, Any]:
        self._file.seek(-self._file.tell() % ALIGNMENT, os.SEEK_CUR)
        offset, crc = self._file.tell(), 0
        for block in data:
            self._file.write(block)
            crc = zlib.crc32(block, crc)
        n_bytes = self._file.tell() - offset
        dtype = np.dtype((SECTIONS | POLICY_SECTIONS)[name])
        row = [WIDTHS[name]] if name in WIDTHS else []
        return _entry(name, [n_bytes // dtype.itemsize // int(np.prod(row)), *row], offset, crc)

    def _header(self, source: str, sections: dict[str, Any]) -> dict[str, Any]:
        return {
            "version": VERSION,
            "created_by": f"lzsweep {version('lzsweep')}",
            "source": source,
            "n_games": len(self.keys),
            "n_positions": self.n_positions,
            "drops": dict(self._drops),
            "examples": self._examples,
            "bytes": self._file.tell(),
            "sections": sections,
        }


class _Policies:
    """Policies on their way: spooled to files, as their sections come after all others."""

    def __init__(self, folder: Path) -> None:
        self._moves = (folder / "moves").open("w+b")
        self._counts = (folder / "starts").open("w+b")
        self._values = (folder / "values").open("w+b")
        self._n_values = 0
        self._counts.write(bytes(8))

    def add(self, policy: NDArray[np.float16]) -> None:
        for start in range(0, len(policy), _SLICE):
            moves, values = pack_policy(policy[start : start + _SLICE])
            counts = np.bitwise_count(moves).sum(axis=1, dtype="<u8")
            self._moves.write(moves.tobytes())
            self._counts.write((np.cumsum(counts, dtype="<u8") + self._n_values).tobytes())
            self._values.write(values.astype("<f2").tobytes())
            self._n_values += len(values)

    def finish(self) -> dict[str, IO[bytes]]:
        streams = (self._moves, self._counts, self._values)
        for stream in streams:
            stream.seek(0)
        return dict(zip(POLICY_SECTIONS, streams, strict=True))


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while block := stream.read(1 << 20):
            yield block


def _entry(name: str, shape: Sequence[int], offset: int, crc: int) -> dict[str, Any]:
    dtype = (SECTIONS | POLICY_SECTIONS)[name]
    return {"dtype": dtype, "shape": list(shape), "offset": offset, "crc32": crc}


def _write_header(file: BinaryIO, header: dict[str, Any]) -> None:
    room = HEADER_BYTES - HEADER_START
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "replace")
    while len(text) > room:
        # Only what is there for people can be long.
        header["source"] = header["source"][: len(header["source"]) * 2 // 3]
        header["examples"] = {k: v[: len(v) * 2 // 3] for k, v in header["examples"].items()}
        text = json.dumps(header, ensure_ascii=False).encode("utf-8", "replace")
    text = text.ljust(room)
    numbers = np.array([VERSION, len(text), zlib.crc32(text)], dtype="<u4")
    file.seek(0)
    file.write(MAGIC + numbers.tobytes() + text)

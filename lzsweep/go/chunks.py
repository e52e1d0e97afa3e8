"""Leela Zero's training chunks, text and binary, read in bounded memory and written.

*Text* ("v1", leela-zero `Training.cpp`), 19 lines a position: 16 planes of 90 hex digits (4 points
each, the first point in the highest bit) and one digit for the last point; `0` or `1` for black or
white to move; 362 probabilities; `1` or `-1` as the side to move won or lost. The planes are the
mover's stones now and 1 to 7 moves ago, then the opponent's.

*Binary* ("v2", leela-zero `training/tf/chunkparser.py`), 2176 bytes a position: int32 1; 362
float32; the 16 planes as 5776 bits in one string, the first in the highest bit; the side to move;
1 if it won.

Either is gzipped as a rule; the first bytes tell what a file is. A record that makes no sense is
left out, one that is cut or malformed ends its file; both are told by file and record number.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

import numpy as np
import numpy.typing as npt

from lzsweep.errors import DataError
from lzsweep.go.archive import Damage, Document, Paths, find_files, read_documents
from lzsweep.go.board import N_MOVES, N_POINTS
from lzsweep.go.game import FRAME_BYTES, Game

N_HISTORY: Final = 8
N_PLANES: Final = 2 * N_HISTORY
PLANE_BYTES: Final = FRAME_BYTES // 2
GAMES_PER_CHUNK: Final = 32

_BLOCK_BYTES: Final = 1 << 20
_LINES: Final = N_PLANES + 3
_PLANE_DIGITS: Final = N_POINTS // 4 + 1
_MAX_LINE_BYTES: Final = 1 << 16
_BINARY_START: Final = b"\x01\x00\x00\x00"
_BINARY = np.dtype(
    [
        ("version", "<i4"),
        ("policy", "<f4", N_MOVES),
        ("planes", "u1", N_PLANES * N_POINTS // 8),
        ("side", "u1"),
        ("won", "u1"),
    ]
)
# Probabilities are written with six digits, so they add up to one only nearly.
_SUM_TOLERANCE: Final = 0.01

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_File = IO[bytes] | gzip.GzipFile


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Positions as the chunk formats hold them, in the order of their file.

    Attributes:
        planes: `[n, 16, 46]` the mover's stones now and 1 to 7 moves ago, then the opponent's;
            each a bitboard as in `Game.frames`.
        side: `[n]` 0 if black is to move, 1 if white.
        policy: `[n, 362]` the probabilities to learn.
        won: `[n]` 1 if the side to move won, else 0.
    """

    planes: Bytes
    side: Bytes
    policy: Floats
    won: Bytes

    def __len__(self) -> int:
        return len(self.side)

    def take(self, rows: npt.NDArray[np.bool_] | slice) -> Records:
        return Records(self.planes[rows], self.side[rows], self.policy[rows], self.won[rows])


def read_chunks(paths: Paths) -> Iterator[Records | Damage]:
    """Read the positions of chunk files, folders or archives of them, or globs.

    Some hundred positions come at a time; memory does not grow with the size of a file.

    Raises:
        DataError: at once, if a path is not there.
    """
    files = find_files(paths, suffix=".gz")
    return itertools.chain.from_iterable(map(_read_file, files))


def goes_on(records: Records, before: Records | None = None) -> npt.NDArray[np.bool_]:
    """`[n]` whether a position follows the one ahead of it in the same game.

    That is so if the boards of its past are those of that position and the sides alternate; in
    shuffled files it never is.

    Args:
        records: Positions in the order of their file.
        before: What was read just before, for the first row.
    """
    if before is not None and len(before):
        joined = [
            np.concatenate([getattr(before, name)[-1:], getattr(records, name)])
            for name in ("planes", "side", "policy", "won")
        ]
        return goes_on(Records(*joined))[1:]
    mine, theirs = records.planes[:, :N_HISTORY], records.planes[:, N_HISTORY:]
    same = (records.side[1:] != records.side[:-1]) & (records.won[1:] != records.won[:-1])
    # What is the mover's now was the opponent's one position ago.
    same &= (mine[1:, 1:] == theirs[:-1, :-1]).all(axis=(1, 2))
    same &= (theirs[1:, 1:] == mine[:-1, :-1]).all(axis=(1, 2))
    return np.concatenate([np.zeros(min(len(records), 1), np.bool_), same])


def encode_game(game: Game) -> Records:
    """The positions of a game, each with its past and the move played as a certainty."""
    n = len(game.moves)
    frames = np.frombuffer(game.frames, np.uint8).reshape(n, 2, PLANE_BYTES)
    side = np.frombuffer(game.colours, np.uint8)
    past = np.arange(n)[:, None] - np.arange(N_HISTORY)
    boards = np.where((past >= 0)[:, :, None, None], frames[np.maximum(past, 0)], np.uint8(0))
    rows = np.arange(n)
    planes = np.concatenate([boards[rows, :, side], boards[rows, :, 1 - side]], axis=1)
    policy = np.zeros((n, N_MOVES), np.float32)
    policy[rows, np.asarray(game.moves, np.intp)] = 1
    return Records(planes, side, policy, (side == game.winner).astype(np.uint8))


def write_chunks(
    prefix: Path,
    games: Iterable[Records],
    *,
    form: Literal["text", "binary"] = "text",
    games_per_chunk: int = GAMES_PER_CHUNK,
) -> list[Path]:
    """Write games to `<prefix>.<number>.gz`, whole and in order, each file at once or not at all.

    Args:
        prefix: The original's training tools read all files whose names begin with it.
        games: Each the positions of one game (`encode_game`, or what `read_chunks` gave).
        form: The text form is the one that the engine writes.
        games_per_chunk: As in the engine's files, unless told otherwise.

    Returns:
        The files; none if there is no game.
    """
    format_records = format_text if form == "text" else format_binary
    written: list[Path] = []
    remaining = iter(games)
    while chunk := list(itertools.islice(remaining, games_per_chunk)):
        path = prefix.with_name(f"{prefix.name}.{len(written)}.gz")
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        data = gzip.compress(b"".join(map(format_records, chunk)), mtime=0)
        try:
            aside.write_bytes(data)
            aside.replace(path)
        except OSError as e:
            raise DataError(f"chunks must go to a writable folder: {path}: {e.strerror}.") from e
        finally:
            aside.unlink(missing_ok=True)
        written.append(path)
    return written


# The bits of a hex digit run against those of a bitboard.
_MIRRORED = np.array([int(f"{digit:04b}"[::-1], 2) for digit in range(16)], np.uint8)
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_NO_DIGIT: Final = 16
_DIGIT_VALUES = np.full(256, _NO_DIGIT, np.uint8)
_DIGIT_VALUES[_DIGITS] = np.arange(16)
_CERTAIN_BYTES: Final = 2 * N_MOVES - 1


def format_text(records: Records) -> bytes:
    flat = records.planes.reshape(-1, PLANE_BYTES)
    lines = np.empty((len(flat), _PLANE_DIGITS + 1), np.uint8)
    lines[:, 0:-2:2] = _DIGITS[_MIRRORED[flat[:, :-1] & 15]]
    lines[:, 1:-2:2] = _DIGITS[_MIRRORED[flat[:, :-1] >> 4]]
    lines[:, -2] = _DIGITS[flat[:, -1] & 1]
    lines[:, -1] = 10
    parts = []
    for planes, side, policy, won in zip(
        lines.reshape(len(records), -1), records.side, records.policy, records.won, strict=True
    ):
        text = " ".join(map("%g".__mod__, policy.tolist()))
        parts += [planes.tobytes(), f"{side}\n{text}\n{1 if won else -1}\n".encode("ascii")]
    return b"".join(parts)


def format_binary(records: Records) -> bytes:
    bits = np.unpackbits(records.planes, axis=2, count=N_POINTS, bitorder="little")
    rows = np.zeros(len(records), _BINARY)
    rows["version"] = 1
    rows["policy"] = records.policy
    rows["planes"] = np.packbits(bits.reshape(len(records), -1), axis=1)
    rows["side"] = records.side
    rows["won"] = records.won
    return rows.tobytes()


def _read_file(file: Path) -> Iterator[Records | Damage]:
    source = str(file)
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            if not start:
                yield Damage(
                    source,
                    "empty; leelaz leaves such a file behind a multiple of 32 games, with nothing "
                    "lost",
                )
            elif _is_archive(stream, start):
                for item in read_documents([file], suffix=".gz"):
                    if isinstance(item, Document):
                        yield from _read_stream(item.source, io.BytesIO(item.data))
                    else:
                        yield item
            elif start.startswith(b"\x1f\x8b"):
                with gzip.open(stream) as unpacked:
                    yield from _read_stream(source, unpacked)
            else:
                yield from _read_stream(source, stream)
    except OSError as e:
        yield Damage(source, f"cannot be read: {e.strerror or e}")


def _is_archive(stream: IO[bytes], start: bytes) -> bool:
    head = stream.read(512)
    if start.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 512)
        except zlib.error:
            head = b""
    stream.seek(0)
    return start.startswith(b"PK") or head[257:262] == b"ustar"


def _read_stream(source: str, stream: _File) -> Iterator[Records | Damage]:
    blocks = _Blocks(stream)
    first = next(blocks, b"")
    if not first and not blocks.problem:
        yield Damage(source, "empty")
        return
    parse = _parse_binary if first.startswith(_BINARY_START) else _parse_text
    number = 1
    for parsed in parse(itertools.chain([first], blocks)):
        if isinstance(parsed, str):
            yield Damage(source, f"record {number}: {parsed}; the rest is left out")
            return
        faults = _faults(parsed)
        for row, fault in sorted(faults.items()):
            yield Damage(source, f"record {number + row}: {fault}; it is left out")
        sound = np.ones(len(parsed), np.bool_)
        sound[list(faults)] = False
        if sound.any():
            yield parsed.take(sound)
        number += len(parsed)
    if blocks.problem:
        yield Damage(source, f"record {number}: {blocks.problem}; the rest is left out")


class _Blocks:
    """The stream in pieces; `problem` says afterwards why it ended before its end."""

    def __init__(self, stream: _File) -> None:
        self._stream = stream
        self.problem: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            block = self._stream.read(_BLOCK_BYTES)
        except (OSError, EOFError, zlib.error) as e:
            self.problem = f"damaged gzip ({e})"
            block = b""
        if not block:
            raise StopIteration
        return block


def _parse_text(blocks: Iterable[bytes]) -> Iterator[Records | str]:
    """Records as they come; a str says what is wrong with the next one and is the last item."""
    lines: list[bytes] = []
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        lines += whole
        n = len(lines) // _LINES
        yield from _decode_text(lines[: n * _LINES])
        del lines[: n * _LINES]
        if len(rest) > _MAX_LINE_BYTES:
            yield "a line is too long for a training chunk"
            return
    if rest:
        lines.append(rest)
    if len(lines) == _LINES:
        yield from _decode_text(lines)
    elif lines:
        yield f"only {len(lines)} of {_LINES} lines are there"


def _decode_text(lines: list[bytes]) -> Iterator[Records | str]:
    n = len(lines) // _LINES
    good = n
    fault = ""
    policy = np.zeros((n, N_MOVES), np.float32)
    for row in range(n):
        record = lines[row * _LINES : (row + 1) * _LINES]
        fault = _text_fault(record) or _decode_policy(record[N_PLANES + 1], policy[row])
        if fault:
            good = row
            break
    if good:
        digits = b"".join(
            line for row in range(good) for line in lines[row * _LINES : row * _LINES + N_PLANES]
        )
        values = _DIGIT_VALUES[np.frombuffer(digits, np.uint8)]
        values = values.reshape(good, N_PLANES, _PLANE_DIGITS)
        wrong = (values[:, :, :-1] == _NO_DIGIT).any(axis=(1, 2)) | (values[:, :, -1] > 1).any(1)
        if wrong.any():
            good = int(wrong.argmax())
            fault = "a plane holds what is no hex digit"
        side = np.array([int(lines[row * _LINES + N_PLANES]) for row in range(good)], np.uint8)
        won = np.array([lines[(row + 1) * _LINES - 1] == b"1" for row in range(good)], np.uint8)
        yield Records(_pack_digits(values[:good]), side, policy[:good], won)
    if fault:
        yield fault


def _pack_digits(values: Bytes) -> Bytes:
    bits = _MIRRORED[values & 15]
    planes = np.empty((*values.shape[:2], PLANE_BYTES), np.uint8)
    planes[:, :, :-1] = bits[:, :, 0:-1:2] | bits[:, :, 1:-1:2] << 4
    planes[:, :, -1] = values[:, :, -1]
    return planes


def _text_fault(record: list[bytes]) -> str:
    for number, line in enumerate(record[:N_PLANES], start=1):
        if len(line) != _PLANE_DIGITS:
            return f"line {number} must have {_PLANE_DIGITS} digits, but has {len(line)}"
    if record[N_PLANES] not in (b"0", b"1"):
        return f"line 17 must be 0 or 1, but is {record[N_PLANES][:20]!r}"
    if record[-1] not in (b"1", b"-1"):
        return f"line 19 must be 1 or -1, but is {record[-1][:20]!r}"
    return ""


def _decode_policy(line: bytes, into: Floats) -> str:
    if len(line) == _CERTAIN_BYTES and line.count(b"0") == N_MOVES - 1 and line.count(b"1") == 1:
        at = line.index(b"1")
        if at % 2 == 0 and line.count(b" ") == N_MOVES - 1:
            into[at // 2] = 1
            return ""
    words = line.split()
    if len(words) != N_MOVES:
        return f"line 18 must have {N_MOVES} numbers, but has {len(words)}"
    try:
        into[:] = np.array(words, np.float32)
    except ValueError:
        return "line 18 must hold numbers only"
    return ""


def _parse_binary(blocks: Iterable[bytes]) -> Iterator[Records | str]:
    rest = b""
    for block in blocks:
        rest += block
        n = len(rest) // _BINARY.itemsize
        rows = np.frombuffer(rest, _BINARY, count=n)
        rest = rest[n * _BINARY.itemsize :]
        wrong = (rows["version"] != 1) | (rows["side"] > 1) | (rows["won"] > 1)
        good = int(wrong.argmax()) if wrong.any() else n
        if good:
            rows = rows[:good]
            bits = np.unpackbits(rows["planes"], axis=1).reshape(good, N_PLANES, N_POINTS)
            planes = np.packbits(bits, axis=2, bitorder="little")
            policy = rows["policy"].astype(np.float32)
            yield Records(planes, rows["side"].copy(), policy, rows["won"].copy())
        if good < n:
            yield "version, side to move or result are out of range"
            return
    if rest:
        yield f"only {len(rest)} of {_BINARY.itemsize} bytes are there"


def _faults(records: Records) -> dict[int, str]:
    """What makes no sense though it is well formed, by row."""
    faults: dict[int, str] = {}
    overlap = records.planes[:, :N_HISTORY] & records.planes[:, N_HISTORY:]
    for row in np.flatnonzero(overlap.any(axis=(1, 2))):
        faults[int(row)] = "black and white stand on the same point"
    with np.errstate(invalid="ignore", over="ignore"):
        total = records.policy.sum(axis=1, dtype=np.float64)
        sound = (records.policy >= 0).all(axis=1) & (np.abs(total - 1) <= _SUM_TOLERANCE)
    for row in np.flatnonzero(~sound):
        faults[int(row)] = "the probabilities are negative, not finite, or do not add up to 1"
    return faults

"""Damaged files of every kind, read by a process that has little memory and a deadline.

A reader may refuse what it is given or take what is sound; it may not crash, hang, swallow the
memory, or read something else than what is there.
"""

from __future__ import annotations

import gzip
import io
import multiprocessing
import random
import re
import resource
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lzsweep.errors import DataError
from lzsweep.go.board import N_MOVES
from lzsweep.go.chunks import Records, encode_game, format_binary, format_text, read_chunks
from lzsweep.go.sgf import FRAME_BYTES, Drop, Game, read_games
from lzsweep.go.weights import read_weights, write_weights
from lzsweep.train.build import BUNDLED_GAMES, build_store
from lzsweep.train.store import SECTIONS, Store
from tests.go.engine import CASES
from tests.go.network import random_weights

MEMORY = 256 << 20  # more than the process has when it begins
DEADLINE_S = 120  # for one file; the slowest takes a second
Check = Callable[[Path, bytes], None]  # what must hold for a damaged file; and the sound one
Row = tuple[tuple[int, ...], int, bytes, int]  # planes, side, policy (float32), won


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Some wounds of the kinds that transfers, editors and enemies make."""
    broken = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(broken) + 1)
        size = rng.choice([1, 1, 4, 60, 3000])
        kind = rng.randrange(6)
        if kind == 0:
            broken[at : at + size] = rng.randbytes(size)
        elif kind == 1:
            broken[at : at + size] = bytes([rng.choice([0, 0x20, 0x30, 0x5B, 0x7F, 0xFF])]) * size
        elif kind == 2:
            del broken[at : at + size]
        elif kind == 3:
            broken[at:at] = broken[at : at + size]
        elif kind == 4:
            broken[at : at + 1] = bytes([(broken[at] if at < len(broken) else 0) ^ 1])
        else:
            del broken[max(at, len(broken) // 2) :]
    return bytes(broken)


def check_games(path: Path, sound: bytes) -> None:
    for item in read_games(path, workers=1):
        if isinstance(item, Game):
            assert len(item.frames) == FRAME_BYTES * len(item.moves) > 0
            assert len(item.colours) == len(item.moves)
            assert max(item.moves) < N_MOVES


def check_chunks(path: Path, sound: bytes) -> None:
    written: Iterator[Row] | None = None
    for item in read_chunks(path):
        if not isinstance(item, Records):
            continue
        assert (item.policy >= 0).all()
        np.testing.assert_allclose(item.policy.sum(axis=1), 1, atol=0.011)
        assert item.side.max() <= 1 >= item.won.max()
        assert not (item.planes[:, :8] & item.planes[:, 8:]).any()
        # Each record is there, bit by bit, after those that came before it; others may be left
        # out. A file of which nothing is taken, such as a bomb, is not unpacked here.
        written = written or plain_rows(path.read_bytes())
        for n in range(len(item)):
            planes = tuple(int.from_bytes(plane.tobytes(), "little") for plane in item.planes[n])
            row = (planes, int(item.side[n]), item.policy[n].tobytes(), int(item.won[n]))
            assert row in written, "a record that is not in the file"


def plain_rows(data: bytes) -> Iterator[Row]:
    """The records of a chunk file by nothing but Python's own reading, up to a malformed one."""
    data = b"".join(inflate(data)) if data.startswith(b"\x1f\x8b") else data
    if data.startswith(b"\x01\0\0\0"):
        whole = data[: len(data) - len(data) % 2176]
        for version, *numbers, planes, side, won in struct.iter_unpack("<i362f722s2B", whole):
            if version != 1 or max(side, won) > 1:
                return
            bits = "".join(f"{byte:08b}" for byte in planes)
            boards = tuple(int(bits[at : at + 361][::-1], 2) for at in range(0, 5776, 361))
            yield boards, side, np.array(numbers, np.float32).tobytes(), won
        return
    lines = data.split(b"\n")
    while len(lines) >= 19:
        record, lines = lines[:19], lines[19:]
        if not all(re.fullmatch(rb"[0-9a-f]{90}[01]", line) for line in record[:16]):
            return
        digits = ("".join(f"{int(d, 16):04b}" for d in line[:90].decode()) for line in record[:16])
        boards = tuple(
            int((bits + chr(line[90]))[::-1], 2)
            for bits, line in zip(digits, record, strict=False)
        )
        if record[16] not in (b"0", b"1") or record[18] not in (b"1", b"-1"):
            return
        try:
            numbers = [float(word) for word in record[17].split()]
        except ValueError:
            return
        if len(numbers) != N_MOVES:
            return
        policy = np.array(numbers, np.float32).tobytes()
        yield boards, int(record[16]), policy, int(record[18] == b"1")


def inflate(data: bytes) -> Iterator[bytes]:
    """All that a gzip file still gives, byte by byte, for whatever is damaged behind."""
    while data.startswith(b"\x1f\x8b"):
        inflater = zlib.decompressobj(wbits=31)
        for at in range(len(data)):
            try:
                yield inflater.decompress(data[at : at + 1])
            except zlib.error:
                return
            if inflater.eof:
                break
        data = data[at + 1 :].lstrip(b"\0")


def check_weights(path: Path, sound: bytes) -> None:
    try:
        found = read_weights(path)
    except DataError:
        return
    # The numbers of the file, by Python's own reading.
    data = path.read_bytes()
    text = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    numbers = np.concatenate([tensor.ravel() for tensor in found.tensors()])
    expected = np.array([float(word) for word in text.split()[1:]], np.float32)
    np.testing.assert_array_equal(numbers, expected)


def check_store(path: Path, sound: bytes) -> None:
    try:
        found = Store.open(path, verify=True)
    except DataError:
        return
    twin = path.with_name("sound.store")
    twin.write_bytes(sound)
    expected = Store.open(twin)
    for name in SECTIONS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("games/a.sgf", data)
    return out.getvalue()


def some_games(n: int) -> list[Game]:
    games = (item for item in read_games(BUNDLED_GAMES, workers=1) if isinstance(item, Game))
    return [next(games) for _ in range(n)]


def seeds(kind: str, folder: Path) -> list[bytes]:
    """Sound files to begin with."""
    if kind == "sgf":
        cases = b"\n".join(path.read_bytes() for path in sorted(CASES.glob("*.sgf")))
        some = gzip.decompress(BUNDLED_GAMES.read_bytes())[:20_000]
        return [cases, some, gzip.compress(some), zipped(cases)]
    if kind == "chunks":
        records = encode_game(some_games(1)[0]).take(slice(0, 40))
        text, binary = format_text(records), format_binary(records)
        return [text, binary, gzip.compress(text), gzip.compress(binary)]
    if kind == "weights":
        for name in ("net.txt", "net.txt.gz"):
            write_weights(folder / name, random_weights(0, 1))
        return [(folder / name).read_bytes() for name in ("net.txt", "net.txt.gz")]
    return [build_store(folder / "some.store", some_games(2), source="fuzz").path.read_bytes()]


def in_small_process(work: Callable[[], None]) -> int | None:
    """Run in a fork with little memory; return its exit code, negative if a signal ended it."""

    def limited() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        work()

    process = multiprocessing.get_context("fork").Process(target=limited)
    process.start()
    process.join()
    return process.exitcode


def test_the_small_process_is_small() -> None:
    assert in_small_process(lambda: bytearray(MEMORY // 2).clear()) == 0
    assert in_small_process(lambda: bytearray(2 * MEMORY).clear()) == 1


@pytest.mark.parametrize(
    ("kind", "check", "n_files"),
    [
        ("sgf", check_games, 120),
        ("chunks", check_chunks, 250),
        ("weights", check_weights, 24),
        ("store", check_store, 250),
    ],
)
def test_damaged_files(kind: str, check: Check, n_files: int, tmp_path: Path) -> None:
    sound = seeds(kind, tmp_path)
    path = tmp_path / f"damaged.{kind}"

    def read_them() -> None:
        for number in range(n_files):
            rng = random.Random(f"{kind} {number}")
            chosen = sound[number % len(sound)]
            path.write_bytes(mutate(chosen, rng))
            signal.alarm(DEADLINE_S)
            check(path, chosen)
            signal.alarm(0)

    # What it could not read stays in `path`, and its traceback is in the test's output.
    assert in_small_process(read_them) == 0, path


@pytest.mark.parametrize(
    ("kind", "check", "piece"),
    [
        ("chunks", check_chunks, b"0" * 4096),
        ("weights", check_weights, b"0 " * 2048),
    ],
)
def test_small_files_that_unpack_to_much(
    kind: str, check: Check, piece: bytes, tmp_path: Path
) -> None:
    """One line without an end: more than the memory, in less than a megabyte."""
    path = tmp_path / "bomb.gz"
    head = b"1\n" if kind == "weights" else b""
    with gzip.open(path, "wb", 1) as out:
        out.write(head)
        for _ in range(300):
            out.write(piece * ((1 << 20) // len(piece)))

    def read_it() -> None:
        signal.alarm(DEADLINE_S)
        check(path, b"")

    assert in_small_process(read_it) == 0


def test_archives_that_unpack_to_much(tmp_path: Path) -> None:
    """Three hundred megabytes in a zip in a gzip, and a game of nothing but nodes in a gzip."""
    path = tmp_path / "bomb.sgf"

    def read_it() -> None:
        signal.alarm(DEADLINE_S)
        (item,) = read_games(path, workers=1)
        assert isinstance(item, Drop)
        assert item.reason == "unreadable"

    path.write_bytes(gzip.compress(zipped(bytes(300 << 20))))
    assert in_small_process(read_it) == 0
    path.write_bytes(gzip.compress(b"(;RE[B+R];B[aa]" + b";" * 8_000_000 + b")"))
    assert in_small_process(read_it) == 0

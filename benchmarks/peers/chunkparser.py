"""leela-zero's own reader of training data (`training/tf/chunkparser.py`) on its fast format.

Said again: a record of 2176 bytes is unpacked, turned by one long index table, packed and written
back; then unpacked once more, given its two colour planes and joined with others to a batch of
bytes. The first half runs in a worker process, which sends record by record through a pipe to a
shuffle buffer in front of the second half.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import struct
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

RECORD = struct.Struct("4s1448s722sBB")
POINTS = 361
PLANES = 16
_SHUFFLED = 4096  # records waiting; the original has many more, at the same cost a record
_COLOURS = (b"\1" * POINTS + b"\0" * POINTS, b"\0" * POINTS + b"\1" * POINTS)

Batch = tuple[bytes, bytes, bytes]


def _turned(point: int, symmetry: int) -> int:
    x, y = point % 19, point // 19
    if symmetry >= 4:
        x, y = y, x
    if symmetry % 4 in (1, 3):
        x = 18 - x
    if symmetry % 4 in (2, 3):
        y = 18 - y
    return y * 19 + x


def _tables() -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    tables = []
    for symmetry in range(8):
        points = np.array([_turned(point, symmetry) for point in range(POINTS)])
        planes = np.concatenate([points + plane * POINTS for plane in range(PLANES)])
        tables.append((planes, np.append(points, POINTS)))
    return tables


def read_batches(chunks: Iterable[bytes], batch_size: int) -> Iterator[Batch]:
    """Batches of planes (uint8), probabilities (float32) and winners (float32), joined."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    worker = context.Process(target=_send_records, args=(chunks, writer), daemon=True)
    worker.start()
    writer.close()
    items = map(_to_tensors, _shuffled(reader))
    while batch := list(itertools.islice(items, batch_size)):
        planes, policies, winners = zip(*batch, strict=True)
        yield b"".join(planes), b"".join(policies), b"".join(winners)


def _send_records(chunks: Iterable[bytes], writer: Connection) -> None:
    tables = _tables()
    for chunk in chunks:
        for start in range(0, len(chunk), RECORD.size):
            record = chunk[start : start + RECORD.size]
            writer.send_bytes(_turn(record, *tables[random.randrange(8)]))


def _shuffled(reader: Connection) -> Iterator[bytes]:
    waiting: list[bytes] = []
    while True:
        try:
            record = reader.recv_bytes()
        except EOFError:
            break
        if len(waiting) < _SHUFFLED:
            waiting.append(record)
            continue
        place = random.randrange(_SHUFFLED)
        waiting[place], record = record, waiting[place]
        yield record
    yield from waiting


def _turn(record: bytes, planes_table: NDArray[np.int64], table: NDArray[np.int64]) -> bytes:
    version, policy, planes, side, winner = RECORD.unpack(record)
    bits = np.unpackbits(np.frombuffer(planes, np.uint8))[planes_table]
    probabilities = np.frombuffer(policy, np.float32)[table]
    return RECORD.pack(version, probabilities.tobytes(), np.packbits(bits).tobytes(), side, winner)


def _to_tensors(record: bytes) -> Batch:
    _, policy, planes, side, winner = RECORD.unpack(record)
    bits = np.unpackbits(np.frombuffer(planes, np.uint8))
    return bits.tobytes() + _COLOURS[side], policy, struct.pack("f", winner * 2.0 - 1)

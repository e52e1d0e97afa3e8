"""Decoding against a slow, obvious reference: one bit after the other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lzsweep.train.data import GoData, Pick, Rows, gather
from lzsweep.train.decode import Decoder, symmetry_table
from lzsweep.train.store import Store

Planes = NDArray[np.float32]


def old_point(symmetry: int, x: int, y: int) -> tuple[int, int]:
    """Leelaz' Network.cpp:968-995, word by word."""
    if symmetry & 4:
        x, y = y, x
    if symmetry & 2:
        x = 18 - x
    if symmetry & 1:
        y = 18 - y
    return x, y


def decode_slowly(store: Store, position: int, symmetry: int) -> tuple[Planes, int, float]:
    frame = int(store.position_frame[position])
    flags = int(store.flags[position])
    white = flags & 1
    planes = np.zeros((18, 19, 19), np.float32)
    move = old_move = int(store.move[position])
    for y, x in product(range(19), range(19)):
        old_x, old_y = old_point(symmetry, x, y)
        point = old_y * 19 + old_x
        if point == old_move:
            move = y * 19 + x
        for age in range((flags >> 2) + 1):
            row = store.frames[frame - age].tobytes()
            stones = [int.from_bytes(row[colour::2], "little") for colour in (0, 1)]
            planes[age, y, x] = stones[white] >> point & 1
            planes[8 + age, y, x] = stones[1 - white] >> point & 1
    planes[16 + white] = 1
    return planes, move, 1.0 if flags & 2 else -1.0


def pick_all(positions: list[int], symmetries: list[int]) -> Pick:
    return Pick(torch.tensor(positions), torch.tensor(symmetries, dtype=torch.uint8))


def test_equals_the_slow_reference(store: Store) -> None:
    # The first moves of a game, whose history is short, passes, and some from everywhere.
    passes = np.flatnonzero(store.move == 361)[:3].tolist()
    second_game = int(store.game_start[1])
    positions = [*range(9), *range(second_game, second_game + 9), *passes]
    positions += np.random.default_rng(0).integers(0, store.n_positions, 11).tolist()
    symmetries = [i % 8 for i in range(len(positions))]
    pick = pick_all(positions, symmetries)

    batch = Decoder()(gather(Rows.of(store), pick))

    assert passes
    for i, (position, symmetry) in enumerate(zip(pick.position, pick.symmetry, strict=True)):
        planes, move, value = decode_slowly(store, int(position), int(symmetry))
        np.testing.assert_array_equal(batch.planes[i].numpy(), planes)
        assert int(batch.move[i]) == move
        assert float(batch.value[i]) == value


@pytest.mark.parametrize("symmetry", range(8))
def test_a_symmetry_absent_from_the_batch_is_no_trouble(store: Store, symmetry: int) -> None:
    batch = Decoder()(gather(Rows.of(store), pick_all([100, 5000], [symmetry] * 2)))

    planes, move, _ = decode_slowly(store, 5000, symmetry)
    np.testing.assert_array_equal(batch.planes[1].numpy(), planes)
    assert int(batch.move[1]) == move


def test_symmetries_are_a_group_that_leaves_pass_alone() -> None:
    rows = [tuple(row) for row in symmetry_table().tolist()]

    assert rows[0] == tuple(range(362))
    assert len(set(rows)) == 8
    assert all(row[361] == 361 for row in rows)
    # Any two of them, one after the other, are one of them.
    for first, second in product(rows, rows):
        assert tuple(first[point] for point in second) in rows


def test_device_resident_batches_are_the_same(go_data: Callable[..., GoData]) -> None:
    data = go_data(batch_size=32)
    resident = go_data(batch_size=32, device_resident=True)

    batches = [next(iter(d.train_dataloader())) for d in (data, resident)]
    mapped, held = (
        d.on_after_batch_transfer(batch, 0)
        for d, batch in zip((data, resident), batches, strict=True)
    )

    assert isinstance(batches[1], Pick)
    for a, b in zip(mapped, held, strict=True):
        assert torch.equal(a, b)


def test_columns_keep_their_unsigned_range(store: Store) -> None:
    rows = Rows.of(store)
    high = Rows(rows.frames, rows.position_frame, torch.full_like(rows.move, -1), rows.flags)

    packed = gather(high, pick_all([3], [0]))

    assert int(packed.move[0]) == 0xFFFF

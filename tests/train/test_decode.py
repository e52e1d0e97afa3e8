"""Decoding against a slow, obvious reference: one bit after the other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback

from lzsweep.train.data import GoData, Pick, Rows, gather
from lzsweep.train.decode import Batch, Decoder, symmetry_table
from lzsweep.train.store import Store
from tests.train.test_module import make_module

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


@pytest.mark.parametrize("with_numpy", [True, False], ids=["numpy", "torch"])
def test_equals_the_slow_reference(
    store: Store, monkeypatch: pytest.MonkeyPatch, with_numpy: bool
) -> None:
    # Without NumPy it takes the steps that it takes on a GPU.
    monkeypatch.setattr("lzsweep.train.decode._numpy_can", lambda tensor: with_numpy)
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


def test_a_batch_that_is_kept_stays_as_it_is(store: Store) -> None:
    decode, rows = Decoder(), Rows.of(store)
    picks = [pick_all([i, 50 * i, 70 * i], [i, 1, 2]) for i in range(6)]

    kept = [decode(gather(rows, pick)).planes for pick in picks]
    weight = torch.ones(1, 18, 1, 1, requires_grad=True)
    loss = torch.nn.functional.conv2d(decode(gather(rows, picks[1])).planes, weight).sum()
    decode(gather(rows, picks[2]))
    decode(gather(rows, picks[3]))
    loss.backward()  # type: ignore[no-untyped-call]

    for pick, planes in zip(picks, kept, strict=True):
        assert torch.equal(planes, Decoder()(gather(rows, pick)).planes)
    assert weight.grad is not None
    assert torch.equal(weight.grad[0, :, 0, 0], kept[1].sum((0, 2, 3)))


def test_memory_is_lent_again_once_nobody_holds_it(store: Store) -> None:
    decode, rows = Decoder(), Rows.of(store)
    packed = gather(rows, pick_all([7, 300], [0, 5]))

    places = {decode(packed).planes.data_ptr() for _ in range(5)}

    assert len(places) == 1


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


class Shown(Callback):
    """Keeps the batches that a training is shown."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert {part.device for part in batch} == {trainer.strategy.root_device}
        self.batches.append(Batch(*(part.cpu().clone() for part in batch)))


GPU = pytest.param(
    "gpu",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    ],
)


@pytest.mark.parametrize("device_resident", [False, True])
@pytest.mark.parametrize("accelerator", ["cpu", GPU])
def test_a_training_is_shown_the_slow_reference_on_every_device(
    go_data: Callable[..., GoData], accelerator: str, device_resident: bool
) -> None:
    shown, data = Shown(), go_data(batch_size=8, device_resident=device_resident)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=3,
        limit_val_batches=0,
        callbacks=[shown],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )

    trainer.fit(make_module(), datamodule=data)

    order = go_data(batch_size=8).train_dataloader().sampler
    assert len(shown.batches) == 3
    for batch, pick in zip(shown.batches, order, strict=False):
        for i, (position, symmetry) in enumerate(zip(pick.position, pick.symmetry, strict=True)):
            planes, move, value = decode_slowly(data.store, int(position), int(symmetry))
            np.testing.assert_array_equal(batch.planes[i].numpy(), planes)
            assert (int(batch.move[i]), float(batch.value[i])) == (move, value)

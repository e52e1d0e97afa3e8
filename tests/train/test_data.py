from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lzsweep.errors import DataError
from lzsweep.train.data import BatchLoader, EpochOrder, GoData, Rows, gather
from lzsweep.train.decode import Packed
from lzsweep.train.store import Store
from tests.train.test_module import make_module

POSITIONS = np.arange(1000, 1100, dtype=np.int32)


def drawn(order: EpochOrder, epoch: int) -> tuple[list[int], list[int]]:
    order.set_epoch(epoch)
    picks = list(order)
    positions = [int(p) for pick in picks for p in pick.position]
    symmetries = [int(s) for pick in picks for s in pick.symmetry]
    return positions, symmetries


def shuffled(batch_size: int = 30, **options: int) -> EpochOrder:
    return EpochOrder(POSITIONS, batch_size, shuffle=True, augment=True, **options)


def test_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    assert drawn(shuffled(seed=1), 0) == drawn(shuffled(seed=1), 0)
    assert drawn(shuffled(seed=1), 0) != drawn(shuffled(seed=1), 1)
    assert drawn(shuffled(seed=1), 0) != drawn(shuffled(seed=2), 0)


def test_an_epoch_shows_each_position_at_most_once_in_whole_batches() -> None:
    positions, _ = drawn(shuffled(), 3)

    assert len(shuffled()) == 3
    assert len(positions) == len(set(positions)) == 90
    assert set(positions) <= set(POSITIONS.tolist())


def test_all_symmetries_are_drawn_alike() -> None:
    order = EpochOrder(np.arange(80_000, dtype=np.int32), 500, seed=1, shuffle=True, augment=True)
    order.set_epoch(0)

    picks = list(order)

    counts = np.zeros(8, int)
    for pick in picks:
        counts += np.bincount(pick.symmetry.numpy(), minlength=8)
    assert (abs(counts - 10_000) < 500).all()


def test_devices_share_every_step() -> None:
    parts = [drawn(shuffled(10, rank=rank, world_size=3), 0)[0] for rank in range(3)]

    whole, _ = drawn(shuffled(30), 0)
    steps = [sorted(p for part in parts for p in part[i : i + 10]) for i in (0, 10, 20)]
    assert steps == [sorted(whole[i : i + 30]) for i in (0, 30, 60)]


def test_validation_keeps_its_order_and_leaves_nothing_out() -> None:
    order = EpochOrder(POSITIONS, 30)

    assert len(order) == 4
    assert drawn(order, 0) == drawn(order, 5) == (POSITIONS.tolist(), [0] * 100)


@pytest.mark.parametrize("n", [100, 64, 61, 60, 33, 32, 30, 29, 5, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_devices_share_a_validation_evenly_to_the_last_position(n: int, batch_size: int) -> None:
    orders = [EpochOrder(POSITIONS[:n], batch_size, rank=r, world_size=3) for r in range(3)]

    steps = list(zip(*orders, strict=True))

    assert [len(order) for order in orders] == [len(steps)] * 3
    shared = [int(p) for step in steps for pick in step for p in pick.position]
    assert shared == POSITIONS[:n].tolist()
    sizes = [[len(pick.position) for pick in step] for step in steps]
    assert all(min(step) >= 1 and max(step) - min(step) <= 1 for step in sizes), sizes
    assert max(sizes[-1]) <= batch_size + 1
    assert all(step == [batch_size] * 3 for step in sizes[:-1]), "all but the last are whole"


def test_devices_share_a_training_of_one_step() -> None:
    orders = [shuffled(64, rank=rank, world_size=3) for rank in range(3)]

    parts = [drawn(order, 0)[0] for order in orders]

    assert [len(part) for part in parts] == [33, 33, 34]
    assert [p for part in parts for p in part] == drawn(shuffled(192), 0)[0]


@pytest.mark.parametrize("n", [68, 65, 40, 2])
def test_metrics_of_two_devices_are_those_of_one(go_data: Callable[..., GoData], n: int) -> None:
    data, module = go_data(), make_module().eval()  # as Lightning validates
    rows = Rows.of(data.store)
    means = []
    for world_size in (1, 2):
        tally = module._tally("val")
        tally.reset()
        for rank in range(world_size):
            order = EpochOrder(POSITIONS[:n], 32 // world_size, rank=rank, world_size=world_size)
            for pick in order:
                module.validation_step(data.on_after_batch_transfer(gather(rows, pick), 0), 0)
        assert tally.n == n
        means.append(tally.compute())
    torch.testing.assert_close(means[0], means[1])
    assert means[0].isfinite().all()


def test_each_device_needs_a_position(go_data: Callable[..., GoData]) -> None:
    data = go_data()
    data._splits["val"] = POSITIONS[:2]
    data.trainer = SimpleNamespace(global_rank=2, world_size=3)  # type: ignore[assignment]

    with pytest.raises(DataError, match=r"each of 3 devices .* but the 2 positions of val"):
        data.val_dataloader()


def test_fewer_positions_than_a_batch_make_one_batch() -> None:
    positions, _ = drawn(EpochOrder(POSITIONS, 256, shuffle=True), 0)

    assert sorted(positions) == POSITIONS.tolist()


def moves(loader: BatchLoader, n: int | None = None) -> list[list[int]]:
    batches = []
    for batch in loader:
        assert isinstance(batch, Packed)
        batches.append(batch.move.tolist())
        if len(batches) == n:
            break
    return batches


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(
    go_data: Callable[..., GoData], num_workers: int
) -> None:
    data = go_data(batch_size=4000, num_workers=num_workers)
    whole = []
    for epoch in (0, 1):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        whole.append(moves(loader))
    first = data.train_dataloader()
    first.sampler.set_epoch(0)
    begun = moves(first, 2)

    second = data.train_dataloader()
    never_used = iter(second)  # Lightning makes one before it restores the state.
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(0)
    rest = moves(second)
    second.sampler.set_epoch(1)

    assert begun + rest == whole[0]
    # What was given of an epoch matters in no other.
    assert moves(second) == whole[1]
    del never_used


def test_a_state_of_another_epoch_is_not_applied(go_data: Callable[..., GoData]) -> None:
    loader = go_data(batch_size=4000).train_dataloader()

    loader.load_state_dict({"epoch": 0, "n_given": 2})
    loader.sampler.set_epoch(1)

    assert len(moves(loader)) == len(loader)


def test_splits_share_no_game(store: Store, go_data: Callable[..., GoData]) -> None:
    data = go_data()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())

    games = []
    for loader in loaders:
        positions = np.concatenate([pick.position for pick in loader.sampler])
        games.append(set(np.searchsorted(store.game_start, positions, side="right").tolist()))

    assert not games[0] & games[1] and not games[0] & games[2] and not games[1] & games[2]
    assert len(games[1] | games[2] | games[0]) == store.n_games


def test_validation_is_not_turned(go_data: Callable[..., GoData]) -> None:
    data = go_data()

    assert all((pick.symmetry == 0).all() for pick in data.val_dataloader().sampler)
    plain = go_data(augment=False).train_dataloader()
    assert all((pick.symmetry == 0).all() for pick in plain.sampler)


def test_a_batch_is_what_the_network_eats(go_data: Callable[..., GoData]) -> None:
    data = go_data(batch_size=8)

    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)

    assert batch.planes.shape == (8, 18, 19, 19)
    assert batch.planes.dtype == torch.float32
    assert batch.planes.is_contiguous(memory_format=torch.channels_last)
    assert batch.move.dtype == torch.int64


def test_refuses_another_board(cache_dir: Path) -> None:
    with pytest.raises(DataError, match=r"board_size=19 and .* but data.board_size=9"):
        GoData("bundled", cache_dir, batch_size=8, board_size=9)


def test_refuses_a_batch_of_nothing(cache_dir: Path) -> None:
    with pytest.raises(DataError, match=r"`batch_size >= 1` must hold, but got batch_size=0"):
        GoData("bundled", cache_dir, batch_size=0)


def test_missing_games_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.sgf"):
        GoData(str(tmp_path / "nowhere.sgf"), tmp_path, batch_size=8).prepare_data()

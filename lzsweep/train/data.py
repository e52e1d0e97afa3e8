"""The training data: batches of packed positions from a store, decoded where they are needed.

A batch is made in three steps. `EpochOrder` picks positions and symmetries: a pure function of
seed and epoch, of which each device gets its part. `gather` collects their packed rows, from the
mapped file or, with `device_resident`, from the device's memory. `Decoder` unpacks them after the
transfer. Only training is shuffled and turned; validation and test keep one order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lzsweep.errors import DataError
from lzsweep.go.board import BOARD_SIZE
from lzsweep.go.chunks import N_HISTORY
from lzsweep.train.build import Paths, ensure_store
from lzsweep.train.decode import (
    N_PAIRS,
    N_PLANES,
    N_SYMMETRIES,
    Batch,
    Decoder,
    Packed,
    Policy,
)
from lzsweep.train.store import HISTORY_SHIFT, Store


class Pick(NamedTuple):
    """Which positions make a batch, and how each is turned; B positions."""

    position: Tensor  # int32 [B]
    symmetry: Tensor  # uint8 [B]


class PolicyRows(NamedTuple):
    """A store's policy columns."""

    moves: Tensor  # uint8 [P, 46]
    start: Tensor  # int64 [P + 1]
    values: Tensor  # float16 [V]


class Rows(NamedTuple):
    """A store's columns as tensors. Torch lacks unsigned types, so these are signed views."""

    frames: Tensor  # uint8 [F, 92]
    position_frame: Tensor  # int32 [P]
    move: Tensor  # int16 [P]
    flags: Tensor  # uint8 [P]
    policy: PolicyRows | None = None  # if any position has more than a move

    @classmethod
    def of(cls, store: Store, device: torch.device | str = "cpu") -> Rows:
        def tensor(column: NDArray[Any]) -> Tensor:
            return torch.from_numpy(column).to(device)

        policy = None
        with warnings.catch_warnings():
            # The mapped file is read-only, and so is what we do with the tensors.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            if store.policy_moves is not None:
                assert store.policy_start is not None and store.policy_values is not None
                policy = PolicyRows(
                    tensor(store.policy_moves),
                    tensor(store.policy_start.view(np.int64)),
                    tensor(store.policy_values),
                )
            return cls(
                frames=tensor(store.frames),
                position_frame=tensor(store.position_frame.view(np.int32)),
                move=tensor(store.move.view(np.int16)),
                flags=tensor(store.flags),
                policy=policy,
            )


def gather(rows: Rows, pick: Pick) -> Packed:
    """Collect the packed rows of a batch: each position's frame and its history."""
    flags = rows.flags.index_select(0, pick.position)
    frame = rows.position_frame.index_select(0, pick.position).to(torch.int64) & 0xFFFFFFFF
    age = torch.arange(N_HISTORY, device=flags.device)[:, None]
    # Before the game began the board was empty, as frame 0 is.
    wanted = torch.where(age <= flags >> HISTORY_SHIFT, frame - age, 0)
    frames = rows.frames.index_select(0, wanted.view(-1)).view(N_HISTORY, -1, N_PAIRS, 2)
    move = rows.move.index_select(0, pick.position).to(torch.int64) & 0xFFFF
    policy = _gather_policy(rows.policy, pick.position.long()) if rows.policy else None
    return Packed(frames, flags, move, pick.symmetry, policy)


def _gather_policy(rows: PolicyRows, position: Tensor) -> Policy:
    start = rows.start[position]
    n_values = rows.start[position + 1] - start
    end = n_values.cumsum(0)
    shift = torch.repeat_interleave(start - end + n_values, n_values)
    values = rows.values[torch.arange(len(shift), device=shift.device) + shift]
    return Policy(rows.moves[position], values)


class EpochOrder(Sampler[Pick]):
    """The batches of an epoch, in order.

    Args:
        positions: `[n]` positions of the split.
        batch_size: positions a batch on each device; of the last one what is left, which they
            share (one more, if it would not give each a position), but when shuffling what is no
            whole step is left out, so that all steps weigh the same.
        seed: with the epoch, decides order and symmetries.
        shuffle: draw a new order each epoch.
        augment: turn the positions of a batch by the eight symmetries in turn. Which position
            meets which hangs on the order, so it is drawn anew each epoch; and the decoder, which
            sees every batch turned alike, need not find out anew what comes from where.
        rank: which of `world_size` devices this is; they share each step's positions.
        world_size: number of devices.
    """

    def __init__(
        self,
        positions: NDArray[np.int32],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._positions = positions
        self._stride = batch_size * world_size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._shuffle = shuffle
        self._augment = augment
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        n = len(self._positions)
        if not self._shuffle:
            n += self._stride - self._world_size  # a step that gives each device a position
        return max(1, n // self._stride)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Pick]:
        rng = np.random.default_rng([self._seed, self.epoch])
        order = rng.permutation(self._positions) if self._shuffle else self._positions
        turns = np.arange(self._stride + N_SYMMETRIES, dtype=np.int64) % N_SYMMETRIES
        n_steps = len(self)
        for i in range(self.start, n_steps):
            start, end = i * self._stride, (i + 1) * self._stride
            if i == n_steps - 1 and not self._shuffle:
                end = len(order)
            step = order[start:end]
            mine, next_one = (
                len(step) * rank // self._world_size for rank in (self._rank, self._rank + 1)
            )
            part = step[mine:next_one]
            first = (start + mine) % N_SYMMETRIES
            symmetry = turns[first : first + len(part)] if self._augment else np.zeros(len(part))
            yield Pick(torch.from_numpy(part), torch.from_numpy(symmetry.astype(np.uint8)))


class _PackedPositions(Dataset[Packed]):
    """Gathers where the data loader runs."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __getitem__(self, pick: Pick) -> Packed:
        return gather(self._rows, pick)


class _Picks(Dataset[Pick]):
    """Leaves the gathering to the device that holds the rows."""

    def __getitem__(self, pick: Pick) -> Pick:
        return pick


def _as_it_is(batch: Any) -> Any:
    return batch


class _Here:
    """What a DataLoader without workers does; it would add a third to gathering 512 positions."""

    def __init__(self, dataset: Dataset[Any], order: EpochOrder) -> None:
        self._dataset = dataset
        self._order = order

    def __iter__(self) -> Iterator[Any]:
        return map(self._dataset.__getitem__, self._order)


class BatchLoader:
    """A data loader that can stop in the middle of an epoch and go on there.

    Lightning asks for an iterator before it tells the epoch and before it restores the state, so
    both are looked at only when the first batch is wanted.
    """

    def __init__(self, dataset: Dataset[Any], order: EpochOrder, num_workers: int = 0) -> None:
        self.sampler = order  # Lightning calls its set_epoch
        self.batch_sampler = None  # and looks for this one
        self._batches: Iterable[Any] = (
            DataLoader(
                dataset,
                batch_size=None,
                sampler=order,
                num_workers=num_workers,
                collate_fn=_as_it_is,
            )
            if num_workers
            else _Here(dataset, order)
        )
        self._n_given = 0
        self._resume = (-1, 0)  # epoch, batches to leave out

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        epoch, n_done = self._resume
        self._resume = (-1, 0)
        self._n_given = self.sampler.start = n_done if epoch == self.sampler.epoch else 0
        for batch in self._batches:
            self._n_given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "n_given": self._n_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = (state["epoch"], state["n_given"])


class GoData(pl.LightningDataModule):
    """Go games as batches.

    Args:
        path: SGF file, archive, folder or glob, or chunks, several of these, a `.store` file, or
            "bundled".
        cache_dir: folder of the stores, shared by all trainings of the machine.
        kind: what `path` holds, "sgf" or "chunks".
        strict: refuse also the games that leelaz cuts short or mislabels.
        filter: limits on games, as `Filter` takes them.
        batch_size: positions a batch on each device.
        val_fraction: part of the games to validate on.
        test_fraction: part of the games to test on.
        augment: turn each training position by a random symmetry.
        device_resident: keep the store in the device's memory.
        num_workers: processes that gather batches ahead; none with `device_resident`.
        seed: decides the order and the symmetries.
        board_size: must be 19.
        in_channels: must be 18.

    Raises:
        DataError: another board size or number of planes than this data has.
    """

    def __init__(
        self,
        path: Paths,
        cache_dir: Path | str,
        *,
        kind: str = "sgf",
        strict: bool = False,
        filter: Mapping[str, Any] | None = None,
        batch_size: int,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        augment: bool = True,
        device_resident: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        board_size: int = BOARD_SIZE,
        in_channels: int = N_PLANES,
    ) -> None:
        super().__init__()
        if (board_size, in_channels) != (BOARD_SIZE, N_PLANES):
            raise DataError(
                f"Go data has board_size={BOARD_SIZE} and in_channels={N_PLANES}, but "
                f"data.board_size={board_size} and data.in_channels={in_channels} were asked for."
            )
        if batch_size < 1:
            raise DataError(f"`batch_size >= 1` must hold, but got {batch_size=}.")
        self._path = path if isinstance(path, str | Path) else list(path)
        self._cache_dir = cache_dir
        self._chosen: dict[str, Any] = {"kind": kind, "strict": strict, "filter": filter}
        self.batch_size = batch_size
        self._fractions = (val_fraction, test_fraction)
        self._augment = augment
        self._resident = device_resident
        self._num_workers = num_workers
        self._seed = seed
        self._decode = Decoder()
        self._splits: dict[str, NDArray[np.int32]] = {}
        self._train_loader: BatchLoader | None = None
        self._resume: dict[str, int] | None = None

    def prepare_data(self) -> None:
        self._ensure_store()

    def setup(self, stage: str) -> None:
        if self._splits:
            return
        self.store = Store.open(self._ensure_store())
        games = self.store.split_games(*self._fractions)
        self._splits = {name: self.store.positions_of(part) for name, part in games.items()}
        self._rows = Rows.of(self.store)

    def _ensure_store(self) -> Path:
        return ensure_store(self._path, self._cache_dir, **self._chosen)

    def train_dataloader(self) -> BatchLoader:
        loader = self._loader("train", shuffle=True, augment=self._augment)
        if self._resume is not None:
            loader.load_state_dict(self._resume)
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val")

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test")

    # Lightning restores a loader's state too, but not once it has counted the steps to come, which
    # the schedules need; a data module's it always restores.
    def state_dict(self) -> dict[str, int]:
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resume = state_dict
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def _loader(self, split: str, *, shuffle: bool = False, augment: bool = False) -> BatchLoader:
        trainer = self.trainer
        if self._resident and trainer is not None:
            device = trainer.strategy.root_device
            if self._rows.frames.device != device:
                self._rows = Rows.of(self.store, device)
        positions, world_size = self._splits[split], trainer.world_size if trainer else 1
        if len(positions) < world_size:
            raise DataError(
                f"each of {world_size} devices must have something to do, but the {len(positions)}"
                f" positions of {split} are fewer: add games, or lower trainer.devices."
            )
        order = EpochOrder(
            positions,
            self.batch_size,
            seed=self._seed,
            shuffle=shuffle,
            augment=augment,
            rank=trainer.global_rank if trainer else 0,
            world_size=world_size,
        )
        if self._resident:
            return BatchLoader(_Picks(), order)
        return BatchLoader(_PackedPositions(self._rows), order, self._num_workers)

    def on_after_batch_transfer(self, batch: Packed | Pick, dataloader_idx: int) -> Batch:
        if isinstance(batch, Tensor):  # Lightning's summary sends the module's example of planes
            return batch
        packed = gather(self._rows, batch) if isinstance(batch, Pick) else batch
        return self._decode(packed)

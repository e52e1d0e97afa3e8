"""Trainings of known length: one that sleeps, one whose steps are the same piece of work.

Lightning is imported inside, since whoever checks a configuration imports its targets.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule, LightningModule
    from torch import Tensor

METRIC = "val/pace"
N_METRICS = 6
SIZE = 192  # of the matrices that a busy step multiplies


def make_data(n_batches: int) -> LightningDataModule:
    import torch
    from pytorch_lightning import LightningDataModule
    from torch.utils.data import DataLoader, TensorDataset

    class Data(LightningDataModule):
        def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
            return DataLoader(TensorDataset(torch.zeros(n_batches, 1)), batch_size=1)

        def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
            return DataLoader(TensorDataset(torch.zeros(1, 1)), batch_size=1)

        test_dataloader = val_dataloader

    return Data()


def make_sleeper(seconds: float) -> LightningModule:
    """Sleeps so long in each training step; the objective is the time."""
    return _make_module(lambda: time.sleep(seconds), pace=seconds, n_metrics=0)


def make_busy(n_products: int) -> LightningModule:
    """Multiplies matrices so often in each training step, and logs as many metrics as ours.

    On one thread, so that a core is left for who delivers and for the server.
    """
    import torch

    torch.set_num_threads(1)
    matrix = torch.eye(SIZE)

    def work() -> None:
        work_on(matrix, n_products)

    return _make_module(work, pace=float(n_products), n_metrics=N_METRICS)


def work_on(matrix: Tensor, n_products: int) -> None:
    for _ in range(n_products):
        matrix = matrix @ matrix


def _make_module(work: object, *, pace: float, n_metrics: int) -> LightningModule:
    import torch
    from pytorch_lightning import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            assert callable(work)
            work()
            if n_metrics:
                self.log_dict({f"train/metric{n}": float(batch_idx) for n in range(n_metrics)})
            return (self.weight * batch[0]).sum()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log(METRIC, pace)

        def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("test/pace", pace)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    return Module()

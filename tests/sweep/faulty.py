"""A user's own small module and data, with a fault that strikes in the middle of training."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from optuna.samplers import RandomSampler
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

BATCHES = 4
"""Training batches an epoch."""


class Faulty(LightningModule):
    """A line through noise; the fault strikes once it has made `at` steps."""

    def __init__(
        self,
        fault: str = "none",
        at: int = 6,
        batch_s: float = 0.0,
        size: int = 1,
        lr: float = 0.1,
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))
        self._fault, self._at, self._batch_s, self._lr = fault, at, batch_s, lr
        self._eaten: list[bytearray] = []

    def on_fit_start(self) -> None:
        print("threads:", torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), flush=True)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        time.sleep(self._batch_s)
        if self.global_step == self._at and self._fault != "none":
            getattr(self, self._fault)()
        loss = ((self.weight.mean() - batch[0]) ** 2).mean()
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        is_nan = self._fault == "not_a_number" and self.global_step > self._at
        self.log("val/loss", torch.nan if is_nan else self.weight.mean() ** 2)

    def test_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.log("test/loss", self.weight.mean() ** 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self._lr, momentum=0.9)

    # Faults

    def not_a_number(self) -> None:
        """From here on the objective is NaN."""

    def error(self) -> None:
        raise ValueError("a bad step")

    def out_of_memory(self) -> None:
        """Take ever more; whoever sets a limit ends it."""
        for _ in range(1000):
            self._eaten.append(bytearray(b"x" * (16 * 2**20)))
            time.sleep(0.02)

    def hang(self) -> None:
        """Sleep in C with Python's lock held, so that no other thread runs either."""
        ctypes.PyDLL(None).sleep(3600)

    def segfault(self) -> None:
        ctypes.string_at(0)

    def exit(self) -> None:
        os._exit(0)

    def sigkill(self) -> None:
        """As a person does, or whoever watches over a machine's memory."""
        os.kill(os.getpid(), signal.SIGKILL)

    def wait(self) -> None:
        """Wait for the file `go on` in the working folder."""
        Path(f"waiting-{os.getpid()}").touch()
        while not Path("go on").exists():
            time.sleep(0.05)

    def chatter(self) -> None:
        """Fill stdout from a process beside the training, for as long as that lasts."""
        subprocess.Popen(["timeout", "20", "yes", "endless chatter " * 8], stdout=sys.stdout)
        time.sleep(2)


class Strike(Callback):
    """Lets a fault of `Faulty` strike a training of any module, in its second epoch."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            getattr(Faulty(), self._fault)()


class Noise(LightningDataModule):
    """Four batches of four numbers; the shipped network's options look for the two sizes."""

    def __init__(self, in_channels: int, board_size: int) -> None:
        super().__init__()

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(TensorDataset(torch.randn(4 * BATCHES)), batch_size=4)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(TensorDataset(torch.randn(4)), batch_size=4)

    test_dataloader = val_dataloader


class BrokenSampler(RandomSampler):
    """Fails at the second trial."""

    def sample_independent(self, study: Any, trial: Any, name: str, of: Any) -> Any:
        if trial.number == 1:
            raise ArithmeticError("the matrix is singular")
        return super().sample_independent(study, trial, name, of)

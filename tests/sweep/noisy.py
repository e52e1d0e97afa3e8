"""A user's callback that says something in every way there is."""

from __future__ import annotations

import os
import warnings

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from lzsweep.imports import has_compiler


class Talking(Dataset[int]):
    """Says something in the process of the loader."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        print("said by a loader's worker")
        return index


class Noisy(Callback):
    """Talks when training begins and ends."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print("said by print")
        warnings.warn("said by a warning", stacklevel=1)
        os.write(2, b"said below Python\n")
        list(DataLoader(Talking(), num_workers=1))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print("the compiler was imported:", has_compiler())

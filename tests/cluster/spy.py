"""A callback of a user's own: notes what a trial sees, and takes its time without using it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer


def make_spy(pause_s: float = 0.0) -> Callback:
    """The callback; Lightning is only imported here, since checks of a config import targets.

    Args:
        pause_s: seconds that it waits after each batch, until somebody puts a file `hurry` into
            the study's folder.
    """
    from pytorch_lightning import Callback

    class Spy(Callback):
        """Writes a line into `seen.jsonl` in the trial's folder when it begins or goes on."""

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen = {
                "node": os.environ.get("SLURMD_NODENAME"),
                "job": os.environ.get("SLURM_ARRAY_TASK_ID"),
                "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "rank": trainer.global_rank,
                "step": trainer.global_step,
            }
            with (Path(trainer.default_root_dir) / "seen.jsonl").open("a") as file:
                file.write(json.dumps(seen) + "\n")

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if not Path(trainer.default_root_dir).with_name("hurry").exists():
                time.sleep(pause_s)

    return Spy()

"""A callback of a user's own: notes what a trial sees, and takes its time without using it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Spy(Callback):
    """Writes `seen.jsonl` into the trial's folder; waits `pause_s` after each batch."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seen = {
            "node": os.environ.get("SLURMD_NODENAME"),
            "job": os.environ.get("SLURM_ARRAY_TASK_ID"),
            "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "given": os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS"),
            "step": trainer.global_step,
        }
        with (Path(trainer.default_root_dir) / "seen.jsonl").open("a") as file:
            file.write(json.dumps(seen) + "\n")

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(self._pause_s)

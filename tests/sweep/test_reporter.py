"""What a trial reports at which rung, with Lightning really training."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lzsweep.sweep.reporter import Reporter
from lzsweep.sweep.trial import Link, Pruned, Report
from lzsweep.train.checkpoint import Checkpoints

N_BATCHES = 4


class Counting(pl.LightningModule):
    """Its objective is the number of optimizer steps, so that a value tells when it was found."""

    def __init__(self, batch_size: int = 10) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batch_size = batch_size

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return (self.weight * batch[0]).sum()

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val/loss", float(self.global_step))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self) -> Any:
        data = TensorDataset(torch.ones(N_BATCHES * self.batch_size))
        return DataLoader(data, batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(1)))


class Worker:
    """The other end of a trial's pipe: notes the reports and answers."""

    def __init__(self, prune_at: int | None = None) -> None:
        self.reports: list[tuple[int, float]] = []
        self._prune_at = prune_at
        mine, theirs = multiprocessing.Pipe()
        self.link = Link(theirs)
        self._pipe = mine
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            report: Report = self._pipe.recv()
            self.reports.append((report.rung, *report.values))  # type: ignore[arg-type]
            self._pipe.send("prune" if report.rung == self._prune_at else "go on")


def fit(
    worker: Worker, resource: Any, rung: float, module: pl.LightningModule | None = None,
    folder: Path | None = None, resume: bool = False, **arguments: Any,
) -> None:  # fmt: skip
    callbacks: list[Any] = [Reporter(["val/loss"], worker.link, resource, rung)]
    checkpoints = None
    if folder:
        checkpoints = Checkpoints(folder, "val/loss", "minimize")
        callbacks.append(checkpoints)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=bool(folder), callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **arguments,
    )  # fmt: skip
    resumed = checkpoints.resume_path() if checkpoints and resume else None
    trainer.fit(module or Counting(), ckpt_path=resumed, weights_only=True)


@pytest.mark.parametrize(
    ("resource", "rung", "arguments", "reports"),
    [
        ("epochs", 1, {"max_epochs": 2}, [(1, 4), (2, 8)]),
        ("epochs", 1, {"max_epochs": 2, "val_check_interval": 0.5}, [(1, 4), (2, 8)]),
        (
            "epochs", 0.5, {"max_epochs": 2, "val_check_interval": 0.5},
            [(1, 2), (2, 4), (3, 6), (4, 8)],
        ),
        ("epochs", 1, {"max_epochs": 4, "check_val_every_n_epoch": 2}, [(2, 8), (3, 8), (4, 16)]),
        ("epochs", 2, {"max_epochs": 4}, [(1, 8), (2, 16)]),
        ("steps", 3, {"max_epochs": 3}, [(2, 4), (3, 8), (4, 12)]),
        ("steps", 2, {"max_epochs": 3, "accumulate_grad_batches": 2}, [(1, 2), (2, 4), (3, 6)]),
        ("positions", 50, {"max_epochs": 3}, [(1, 4), (2, 8)]),
        ("positions", 20, {"max_epochs": 2}, [(2, 4), (3, 4), (4, 8)]),
    ],
)  # fmt: skip
def test_a_rung_is_told_what_was_known_when_it_was_reached(
    resource: str, rung: float, arguments: dict[str, Any], reports: list[tuple[int, float]]
) -> None:
    worker = Worker()
    fit(worker, resource, rung, **arguments)
    assert worker.reports == reports


def test_positions_count_alike_whatever_the_batch_size() -> None:
    large, small = Worker(), Worker()
    fit(large, "positions", 80, Counting(batch_size=20), max_epochs=4)
    fit(small, "positions", 80, Counting(batch_size=10), max_epochs=8)
    assert [rung for rung, _ in large.reports] == [rung for rung, _ in small.reports]
    assert large.reports == [(1, 4), (2, 8), (3, 12), (4, 16)]
    assert small.reports == [(1, 8), (2, 16), (3, 24), (4, 32)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr("lzsweep.sweep.reporter.time.monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


class Slow(Counting):
    """Takes three seconds a step, by a clock of the test's."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def on_train_batch_end(self, *_: Any) -> None:
        self._advance(3.0)


@pytest.mark.parametrize(
    ("resource", "rung"), [("seconds", 10.0), ("positions", 33), ("epochs", 1)]
)
def test_a_resumed_training_goes_on_counting(
    resource: str, rung: float, clock: Callable[[float], None], tmp_path: Path
) -> None:
    whole, parts = Worker(), Worker()
    fit(whole, resource, rung, Slow(clock), tmp_path / "whole", max_epochs=4)
    fit(parts, resource, rung, Slow(clock), tmp_path / "parts", max_epochs=2)
    clock(5000.0)  # nobody trains
    fit(parts, resource, rung, Slow(clock), tmp_path / "parts", resume=True, max_epochs=4)
    assert parts.reports == whole.reports
    assert len(whole.reports) >= 3


def test_a_trial_ends_at_the_rung_where_it_is_pruned() -> None:
    worker = Worker(prune_at=2)
    with pytest.raises(Pruned):
        fit(worker, "steps", 3, max_epochs=9)
    assert worker.reports == [(2, 4)]

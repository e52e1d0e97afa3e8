"""The training step: ours through Lightning with MLflow logging, the original's, a bare loop.

Rates are of the median step, so that no other job on the machine decides. Ours begins to count
when compilation and the start of MLflow, which goes on beside the training, are over.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from benchmarks.peers import original
from benchmarks.table import Row
from lzsweep.cli import main
from lzsweep.train.data import GoData
from lzsweep.train.network import Network
from lzsweep.train.precision import MIXED, resolve_precision

BATCH = 256
BLOCKS, FILTERS = 8, 32  # network=small
WARM_UP = 3
L2 = 1e-4

_ends: list[float] = []


class Clock(pl.Callback):
    """Notes when each training step ended."""

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        _ends.append(time.perf_counter())


def rows(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Positions a second of the small network on the CPU, batch 256."""
    n_steps = WARM_UP + 3 if quick else 24
    n_ours = n_steps if quick else 100
    data = GoData("bundled", folder / "cache", batch_size=BATCH)
    data.setup("fit")
    # In turn, and the better of two each, as other jobs come and go.
    rounds = 1 if quick else 2
    peer = ours = bare = 0.0
    for number in range(rounds):
        peer = max(peer, _rate(list(original_steps(data, n_steps))[WARM_UP:]))
        bare = max(bare, _rate(list(bare_steps(data, n_steps))[WARM_UP:]))
        ours = max(ours, lightning_rate(folder / f"plain{number}", n_ours))
    compiled = lightning_rate(folder / "compiled", n_ours, "module.compile=true")
    unit = "positions/s"
    against = "original's eager loop, batches at hand"
    yield Row("train_step", against, ours, peer, unit, ">= 1.9")
    yield Row("train_step_compiled", against, compiled, peer, unit, ">= 2.6")
    yield Row("lightning_path", "our own bare loop", ours, bare, unit, ">= 0.97")


def lightning_rate(folder: Path, n_steps: int, *overrides: str) -> float:
    """A training from the command line, with MLflow on SQLite."""
    folder.mkdir()
    _ends.clear()
    arguments = [
        "network=small",
        f"batch_size={BATCH}",
        "trainer=cpu",
        "trainer.max_epochs=1",
        f"trainer.limit_train_batches={n_steps}",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "trainer.enable_progress_bar=false",
        f"+callbacks.clock._target_={__name__}.Clock",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"hydra.run.dir={folder}/run",
        *overrides,
    ]
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        code = main(arguments)
    if code != 0 or len(_ends) != n_steps:
        raise RuntimeError(f"the training ended with {code} after {len(_ends)} steps")
    return _rate(_ends[n_steps // 2 :])


def bare_steps(data: GoData, n_steps: int) -> Iterator[float]:
    """The same step in a loop of a few lines: network, loss, optimizer, layout, precision."""
    net = Network(BLOCKS, FILTERS).to(memory_format=torch.channels_last)
    weights = list(net.decayed_weights())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    mixed = resolve_precision("auto", "cpu") == MIXED
    for _, packed in zip(range(n_steps), data.train_dataloader(), strict=False):
        batch = data.on_after_batch_transfer(packed, 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            policy, value = net(batch.planes.float())
            loss = F.cross_entropy(policy, batch.move) + F.mse_loss(value, batch.value)
            norms = torch.stack([torch.linalg.vector_norm(weight) for weight in weights])
            loss = loss + L2 * 0.5 * norms.square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield time.perf_counter()


def original_steps(data: GoData, n_steps: int) -> Iterator[float]:
    net = original.Net(BLOCKS, FILTERS)
    packed = zip(range(n_steps), data.train_dataloader(), strict=False)
    ready = [data.on_after_batch_transfer(batch, 0) for _, batch in packed]
    items = ((b.planes.float(), b.move, b.value) for b in ready)
    for _ in original.train_steps(net, items):
        yield time.perf_counter()


def _rate(ends: list[float]) -> float:
    steps = [after - before for before, after in itertools.pairwise(ends)]
    return BATCH / statistics.median(steps)

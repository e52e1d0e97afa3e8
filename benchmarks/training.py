"""The training step: ours through Lightning with MLflow logging, the original's, a bare loop.

Rates are of the median step, so that no other job on the machine decides. Ours begins to count
when compilation and the start of MLflow, which goes on beside the training, are over. The bare
loop takes its steps between ours, one for one. Losses are of whole trainings of 300 steps.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from benchmarks.ceiling import matmul_ceiling, training_flops
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
SEEDS = (1, 2, 3)
SMALL_BATCH = 64  # so that an epoch of the bundled games has 300 steps


@dataclass
class Seen:
    """What `Watch` saw of a training."""

    bare: Iterator[float] | None = None
    ours_s: list[float] = field(default_factory=list)  # each step
    bare_s: list[float] = field(default_factory=list)
    val_loss: float = math.nan


_seen = Seen()


class Watch(pl.Callback):
    """Times each training step, and between them steps of the bare loop; notes the last loss."""

    def __init__(self) -> None:
        self._began = math.nan

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        _seen.ours_s.append(time.perf_counter() - self._began)
        if _seen.bare is not None:
            began = time.perf_counter()
            next(_seen.bare)
            _seen.bare_s.append(time.perf_counter() - began)
        self._began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            _seen.val_loss = float(trainer.callback_metrics["val/loss_unweighted"])


def rows(folder: Path, *, quick: bool) -> Iterator[Row]:
    """The small network on the CPU, batch 256; the losses: tiny, for many steps must be made."""
    n_steps = WARM_UP + 3 if quick else 24
    n_ours = n_steps if quick else 100
    data = GoData("bundled", folder / "cache", batch_size=BATCH)
    data.setup("fit")
    # In turn, and the better of two each, as other jobs come and go.
    peer = ours = 0.0
    for number in range(1 if quick else 2):
        peer = max(peer, _rate(_durations(original_steps(data, n_steps))[WARM_UP:]))
        ours = max(ours, _step_rate(folder / f"plain{number}", n_ours))
    compiled = _step_rate(folder / "compiled", n_ours, "module.compile=true")
    unit = "positions/s"
    against = "original's eager loop, batches at hand"
    yield Row("train_step", against, ours, peer, unit, ">= 1.9")
    yield Row("train_step_compiled", against, compiled, peer, unit, ">= 2.6")
    dtype = torch.bfloat16 if resolve_precision("auto", "cpu") == MIXED else torch.float32
    cpu = torch.device("cpu")
    most = matmul_ceiling(cpu, dtype, 20) / training_flops(BLOCKS, FILTERS)
    against = f"all its products as fast as a large {str(dtype)[6:]} one"
    yield Row("train_step_ceiling", against, max(ours, compiled), most, unit, ">= 0")
    paired = run_lightning(folder / "paired", n_ours, bare=bare_steps(data))
    ours, bare = (_rate(s[n_ours // 4 :]) for s in (paired.ours_s, paired.bare_s))
    yield Row("lightning_path", "our own bare loop, step by step", ours, bare, unit, ">= 0.97")
    yield from losses(folder, n_steps=6 if quick else 300)


def losses(folder: Path, n_steps: int) -> Iterator[Row]:
    """Validation loss of the defaults; noise is how much float32's seeds differ."""
    tiny = ("network=tiny", f"batch_size={SMALL_BATCH}")

    def of(name: str, *overrides: str) -> list[float]:
        every = [
            run_lightning(folder / f"{name}{seed}", n_steps, *tiny, f"seed={seed}", *overrides)
            for seed in SEEDS
        ]
        return [seen.val_loss for seen in every]

    full = of("full", "precision=32-true")
    peer = statistics.mean(full)
    goal = f"<= {1 + 2 * statistics.stdev(full) / peer:.4g}"
    against = f"float32, tiny, {n_steps} steps, mean of {len(SEEDS)} seeds"
    for what, *overrides in (("loss_300",), ("loss_300_compiled", "module.compile=true")):
        yield Row(what, against, statistics.mean(of(what, *overrides)), peer, "loss", goal)


def run_lightning(
    folder: Path, n_steps: int, *overrides: str, bare: Iterator[float] | None = None
) -> Seen:
    """A training from the command line, with MLflow on SQLite."""
    global _seen
    _seen = Seen(bare)
    folder.mkdir()
    arguments = [
        "network=small",
        f"batch_size={BATCH}",
        "trainer=cpu",
        "trainer.max_epochs=1",
        f"trainer.limit_train_batches={n_steps}",
        "trainer.limit_val_batches=8",
        "trainer.limit_test_batches=1",
        "trainer.enable_progress_bar=false",
        f"+callbacks.watch._target_={__name__}.Watch",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"hydra.run.dir={folder}/run",
        *overrides,
    ]
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        code = main(arguments)
    if code != 0 or len(_seen.ours_s) != n_steps:
        raise RuntimeError(f"the training ended with {code} after {len(_seen.ours_s)} steps")
    return _seen


def _step_rate(folder: Path, n_steps: int, *overrides: str) -> float:
    return _rate(run_lightning(folder, n_steps, *overrides).ours_s[n_steps // 2 :])


def bare_steps(data: GoData) -> Iterator[float]:
    """The same step in a loop of a few lines: network, loss, optimizer, layout, precision."""
    net = Network(BLOCKS, FILTERS).to(memory_format=torch.channels_last)
    weights = list(net.decayed_weights())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    mixed = resolve_precision("auto", "cpu") == MIXED
    for packed in itertools.chain.from_iterable(itertools.repeat(data.train_dataloader())):
        batch = data.on_after_batch_transfer(packed, 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            policy, value = net(batch.planes)
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
    items = ((b.planes.contiguous(), b.move, b.value) for b in ready)
    for _ in original.train_steps(net, items):
        yield time.perf_counter()


def _durations(ends: Iterator[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(ends)]


def _rate(seconds: list[float]) -> float:
    return BATCH / statistics.median(seconds)

"""When each training of a sweep took place, whoever ran it, and what follows from that.

The clock is a Lightning callback by its name in the configuration, the same for ours and for every
peer. A training's time runs from the making of its callbacks, when data and network are built, to
the end of its test. Its tool began the trial before that, when it wrote the first file of its
folder; what is imported in between is no training. Each leaves one file, so that any number of
processes may write. Times are of the machine's monotonic clock, which its processes share.
"""

from __future__ import annotations

import heapq
import importlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning import Callback

OVERRIDE = "+callbacks.clock={_target_:benchmarks.clock.make_clock,%s}"


@dataclass(frozen=True)
class Span:
    """One training: seconds of the monotonic clock, and the best value that it reached.

    Attributes:
        called: when its tool had begun its trial; 0 where that is not known.
        steps_s: seconds between the ends of its first and its last training step.
        place: node and device of a cluster; empty elsewhere.
    """

    began: float
    ended: float
    best: float | None = None
    steps_s: float = 0.0
    logger: str = ""
    place: str = ""
    called: float = 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def clock_override(folder: Path, *, metric: str = "", first: str = "") -> str:
    """The override that adds the clock to a training.

    Args:
        folder: where the spans go.
        metric: the objective of which the best is kept.
        first: a module to import before the time begins, because its import belongs to the
            start of a process and not to the training.
    """
    return OVERRIDE % f"folder:'{folder}',metric:'{metric}',first:'{first}'"


def make_clock(folder: str, metric: str = "", first: str = "") -> Callback:
    """The callback; Lightning is only imported here, since checks of a config import targets."""
    if first:
        importlib.import_module(first)
    from pytorch_lightning import Callback, LightningModule, Trainer

    class Clock(Callback):
        def __init__(self) -> None:
            self.began = time.monotonic()
            self.values: list[float] = []
            self.first_step = self.last_step = 0.0
            self.called = 0.0

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            self.called = self.called or _first_written(Path(trainer.default_root_dir))

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            self.last_step = time.monotonic()
            self.first_step = self.first_step or self.last_step

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if metric in trainer.callback_metrics and not trainer.sanity_checking:
                self.values.append(float(trainer.callback_metrics[metric]))

        def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            if stage != "test":
                return
            steps_s = self.last_step - self.first_step
            logger = type(trainer.logger).__name__ if trainer.logger else ""
            best = min(self.values, default=None)
            span = Span(self.began, time.monotonic(), best, steps_s, logger, place(), self.called)
            write_span(span, Path(folder))

    return Clock()


def _first_written(folder: Path) -> float:
    first = min((p.stat().st_mtime for p in folder.rglob("*") if p.is_file()), default=0.0)
    return first and time.monotonic() - (time.time() - first)


def place() -> str:
    """Where this process trains: `n1:0`; empty where it is no job of a cluster."""
    node, device = (os.environ.get(n) for n in ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"))
    return f"{node}:{device}" if node else ""


def write_span(span: Span, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}-{time.monotonic_ns()}.json"
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(asdict(span)))
    aside.replace(path)


def read_spans(folder: Path) -> list[Span]:
    """The trainings that ended, in the order in which they began."""
    spans = [Span(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(spans, key=lambda span: span.began)


def wall_s(spans: Sequence[Span]) -> float:
    """Seconds from the first training's begin to the last one's end."""
    return max(s.ended for s in spans) - min(s.began for s in spans)


def wall_of_trials_s(spans: Sequence[Span]) -> float:
    """Seconds from when the first trial was begun, not yet trained, to the last one's end."""
    return max(s.ended for s in spans) - min(s.called or s.began for s in spans)


def overhead_s(spans: Sequence[Span], n_slots: int, wall_s: float) -> float:
    """Seconds of slots a training that no training filled."""
    return (n_slots * wall_s - sum(s.seconds for s in spans)) / len(spans)


def places_s(spans: Sequence[Span]) -> float:
    """Seconds of all places, each from its first training's begin to the end of the last one."""
    first: dict[str, float] = {}
    for span in spans:
        first[span.place] = min(span.began, first.get(span.place, span.began))
    end = max(s.ended for s in spans)
    return sum(end - began for began in first.values())


def list_schedule_s(durations: Sequence[float], n_slots: int) -> float:
    """Seconds if each job, in the given order, begins at once where a slot is first free.

    The greedy list schedule of Graham (1969).
    """
    free = [0.0] * n_slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)

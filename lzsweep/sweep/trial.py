"""One trial's process: trains with Lightning and knows nothing of Optuna, databases or MLflow.

It is forked from the forkserver and talks to its worker over one pipe:

    to the worker   Started | Report(rung, values) | End(kind, ...)
    from it         "go on" | "prune" | "stop"     ("stop": checkpoint, then end)

The end of the pipe means that the worker is dead; the process then ends at once, because another
worker will take the trial up. The exclusive lock on the folder keeps two attempts apart.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import filelock

from lzsweep.errors import LzsweepError
from lzsweep.sweep.record import Resource
from lzsweep.train.run import objectives_of

LOG_NAME = "trial.log"

Word = Literal["go on", "prune", "stop"]
Kind = Literal["complete", "pruned", "infeasible", "error", "stopped", "killed"]


@dataclass(frozen=True)
class Spec:
    """All that a trial's process is told.

    Attributes:
        config: the composed configuration, plain and resolved.
        folder: where the log, the journal and the checkpoints go.
        metrics: names of the objectives.
        device: what CUDA_VISIBLE_DEVICES is to be; None leaves it, "" hides all.
        threads: CPU threads that torch may use; 0 leaves the number to torch.
        resource: what is counted between two judgements.
        rung: how much of it.
    """

    config: Mapping[str, Any]
    folder: str
    metrics: Sequence[str]
    device: str | None
    threads: int
    resource: Resource = "epochs"
    rung: float = 1.0


@dataclass(frozen=True)
class Started:
    """The folder's lock is held and training begins."""


@dataclass(frozen=True)
class Report:
    """The objectives known at a rung of the resource; rungs count from 1."""

    rung: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class End:
    """The last word of a trial's process, or what its death means.

    Attributes:
        values: the objectives, of a complete trial.
        metrics: all metrics of the best checkpoint, of a complete trial.
        train_s: seconds between the folder's lock and this word.
    """

    kind: Kind
    reason: str = ""
    values: tuple[float, ...] | None = None
    metrics: Mapping[str, float] | None = None
    train_s: float = 0.0


class Pruned(Exception):
    """The worker said that this trial is not worth going on with."""


class Stopped(Exception):
    """The worker asked for a checkpoint and the end; somebody will go on from it."""


class Link:
    """The trial's end of the pipe: reports block for the answer, a stop comes at any time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._answers: list[Word] = []
        self._answered = threading.Condition()
        self.stopping = False
        threading.Thread(target=self._listen, name="link", daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                word: Word = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(1)  # The worker is dead: nobody may write to the folder any more.
            with self._answered:
                if word == "stop":
                    self.stopping = True
                else:
                    self._answers.append(word)
                self._answered.notify()

    def send(self, message: Started | Report | End) -> None:
        self._pipe.send(message)

    def ask(self, report: Report) -> Word:
        """Report and wait for what to do."""
        self.send(report)
        with self._answered:
            self._answered.wait_for(lambda: self._answers)
            return self._answers.pop(0)


def ignore_signals() -> None:
    """Leave signals to the worker: a terminal and a cluster send them to every process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def prove_preloaded() -> None:
    """End with exit code 0 if the forkserver has imported what trials need."""
    sys.exit(not {"torch", "pytorch_lightning", "lzsweep.train.fit"} <= set(sys.modules))


def run_trial(spec: Spec, pipe: Connection) -> None:
    """Train one attempt; runs in a child of the forkserver."""
    folder = Path(spec.folder)
    _take_over_output(folder / LOG_NAME)
    link = Link(pipe)
    with filelock.FileLock(folder / "lock"):
        link.send(Started())
        link.send(_train(spec, folder, link, began=time.monotonic()))
    sys.stdout.flush()
    sys.stderr.flush()


def _train(spec: Spec, folder: Path, link: Link, began: float) -> End:
    # The forkserver has imported these; here the names are only looked up.
    import torch
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    from lzsweep.sweep.judge import Judge
    from lzsweep.train.export import publish
    from lzsweep.train.fit import train
    from lzsweep.train.module import NonFiniteLossError

    if spec.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = spec.device
    if spec.threads:
        torch.set_num_threads(spec.threads)

    def end(kind: Kind, reason: str = "", **found: Any) -> End:
        return End(kind, reason, train_s=time.monotonic() - began, **found)

    try:
        trainer = {**spec.config["trainer"], "enable_progress_bar": False}  # nobody watches
        metrics = train(
            {**spec.config, "trainer": trainer},
            folder=folder,
            callbacks=[Judge(spec.metrics, link, spec.resource, spec.rung)],
            plugins=[LightningEnvironment()],
        )
        return end("complete", values=objectives_of(metrics, spec.metrics), metrics=metrics)
    except Pruned:
        publish(folder)
        return end("pruned", "worse than the others at this rung")
    except Stopped:
        return end("stopped")
    except (NonFiniteLossError, torch.cuda.OutOfMemoryError, MemoryError) as error:
        return end("infeasible", _short(error))
    except SystemExit as error:  # Lightning makes one of a signal
        return end("killed", f"stopped from outside: {error}")
    except LzsweepError as error:
        return end("error", str(error))
    except Exception as error:  # recorded by the worker as this trial's failure
        traceback.print_exc()
        return end("error", _short(error))


def _short(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().splitlines()[:1] or [""]
    return f"{type(error).__name__}: {text[0]} ({Path(frame.filename).name}:{frame.lineno})"


def _take_over_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a killed process said is wanted most
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

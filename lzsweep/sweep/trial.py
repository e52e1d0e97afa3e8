"""One trial's process: trains with Lightning and knows nothing of Optuna, databases or MLflow.

It is forked from the forkserver and talks to its worker over one pipe:

    from the worker Spec, then "go on" | "prune" | "stop" ("stop": checkpoint, then end)
    to it           Started | Report(rung, values) | End(kind, ...)

The end of the pipe means that the worker is dead; the process then ends at once, because another
worker will take the trial up. The exclusive lock on the folder keeps two attempts apart.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil

from lzsweep.config import objectives_of
from lzsweep.errors import LzsweepError
from lzsweep.sweep.output import take_over_output
from lzsweep.train.parent import die_with_parent

LOG_NAME = "trial.log"

Resource = Literal["epochs", "steps", "positions", "seconds"]
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
        threads: CPU threads that torch may use in a process; 0 leaves the number to torch.
        resource: what is counted between two judgements.
        rung: how much of it.
        is_sanity: train one batch only and tell, as of a complete trial, what was logged.
    """

    config: Mapping[str, Any]
    folder: str
    metrics: Sequence[str]
    device: str | None
    threads: int
    resource: Resource = "epochs"
    rung: float = 1.0
    is_sanity: bool = False


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


class NonFinite(Exception):
    """An objective is NaN or infinite, so that it compares with nothing."""


class Stopped(Exception):
    """The worker asked for a checkpoint and the end; somebody will go on from it."""


def check_finite(names: Sequence[str], values: tuple[float, ...]) -> tuple[float, ...]:
    """The values of the objectives as they are.

    Raises:
        NonFinite: one is NaN or infinite.
    """
    if not all(map(math.isfinite, values)):
        shown = ", ".join(f"{n}={v}" for n, v in zip(names, values, strict=True))
        raise NonFinite(f"an objective must be finite, but {shown}")
    return values


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
                # The worker is dead: nobody may write to the folder any more.
                kill_session(os.getsid(0))
                os._exit(1)
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


def run_trial(pipe: Connection) -> None:
    """Wait for an attempt and train it; runs in a child of the forkserver."""
    os.setsid()  # what it starts belongs to it, and ends with it
    die_with_forkserver()
    _rehearse()
    try:
        spec: Spec = pipe.recv()
    except EOFError:  # there is none
        return
    folder = Path(spec.folder)
    link = Link(pipe)
    try:
        take_over_output(folder / LOG_NAME)
        with _lock_folder(folder, link):
            link.send(Started())
            link.send(_train(spec, folder, link, began=time.monotonic()))
    except Stopped:
        link.send(End("stopped"))
    except OSError as error:
        link.send(End("error", reason_of(error)))
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()


def take_device(mask: str) -> None:
    """Let CUDA, which must not have begun yet, see these devices of this machine alone."""
    os.environ["CUDA_VISIBLE_DEVICES"] = mask
    # Numbered as by NVML, which counted them; by itself CUDA calls the fastest one 0.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def kill_session(session: int) -> None:
    """Kill the processes of a session but this one: a trial's, and what it has started."""
    for pid in psutil.pids():
        with suppress(OSError):  # gone by now, or not ours
            if pid != os.getpid() and os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)


def die_with_forkserver() -> None:
    """Ask Linux to kill this process with its forkserver, which ends with the worker.

    The end of the pipe says the same, but a hanging process does not hear it.
    """
    if sys.platform != "linux":
        return
    die_with_parent()
    # Every child is given what keeps the forkserver alive; only the worker is to hold it.
    server = forkserver._forkserver
    if (alive := getattr(server, "_forkserver_alive_fd", None)) is not None:
        os.close(alive)
        server.__init__()  # type: ignore[misc]


@contextmanager
def _lock_folder(folder: Path, link: Link) -> Iterator[None]:
    lock = filelock.FileLock(folder / "lock")
    told = False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            if link.stopping:
                raise Stopped from None
            if not told:
                print(
                    f"waiting: an older attempt of this trial holds {lock.lock_file}", flush=True
                )
                told = True
    try:
        yield
    finally:
        lock.release()


def _rehearse() -> None:
    from lzsweep.train.fit import rehearse  # the forkserver has imported it

    with suppress(Exception):  # of a training it would be told
        rehearse()


def _train(spec: Spec, folder: Path, link: Link, began: float) -> End:
    # The forkserver has imported these; here the names are only looked up.
    import torch
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    from lzsweep.sweep.reporter import Reporter
    from lzsweep.train.fit import train, train_one_batch
    from lzsweep.train.module import NonFiniteLossError

    if spec.device is not None:
        take_device(spec.device)
    if spec.threads:
        torch.set_num_threads(spec.threads)
        os.environ["OMP_NUM_THREADS"] = str(spec.threads)  # else Lightning sets it, on devices

    def end(kind: Kind, reason: str = "", **found: Any) -> End:
        return End(kind, reason, train_s=time.monotonic() - began, **found)

    try:
        if spec.is_sanity:
            plugins = [LightningEnvironment()]
            return end(
                "complete", metrics=train_one_batch(spec.config, folder=folder, plugins=plugins)
            )
        trainer = {**spec.config["trainer"], "enable_progress_bar": False}  # nobody watches
        metrics = train(
            {**spec.config, "trainer": trainer},
            folder=folder,
            callbacks=[Reporter(spec.metrics, link, spec.resource, spec.rung)],
            plugins=[LightningEnvironment()],
        )
        values = check_finite(spec.metrics, objectives_of(metrics, spec.metrics))
        return end("complete", values=values, metrics=metrics)
    except Stopped:
        return end("stopped")
    except SystemExit as error:  # Lightning makes one of a signal
        return end("killed", f"stopped from outside: {error}")
    except Pruned:
        return end("pruned", "worse than the others at this rung")
    except NonFinite as error:
        return end("infeasible", str(error))
    except (NonFiniteLossError, torch.cuda.OutOfMemoryError, MemoryError) as error:
        return end("infeasible", reason_of(error))
    except LzsweepError as error:
        return end("error", str(error))
    except Exception as error:  # recorded by the worker as this trial's failure
        with suppress(OSError):  # a full disk
            traceback.print_exc()
        return end("error", reason_of(error))


def reason_of(error: BaseException) -> str:
    """An exception in one line: what it says and where it was raised; a full disk as such."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" ({cause.filename})" if cause.filename else ""
            return f"the disk is full: {cause.strerror}{where}; make room before more trials fail"
        cause = cause.__cause__ or cause.__context__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().splitlines()[:1] or [""]
    return f"{type(error).__name__}: {text[0]} ({Path(frame.filename).name}:{frame.lineno})"

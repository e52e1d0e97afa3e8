"""Many workers on one study, without training: real claims, reports, tells, beats and idle slots.

Each worker is a process of its own with the worker's real loops (`Worker`), a connection pool of
its own and one slot, whose trials take no time. Beside it as many processes of plain Optuna on
the same PostgreSQL, with the same settings, sampler and pruner, which share out the same number of
trials by a counter.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psycopg
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from benchmarks.claims import DISTRIBUTIONS, postgres, record
from benchmarks.table import Row
from lzsweep.commands import compose_sweep
from lzsweep.config import conf_dir
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.record import Claim
from lzsweep.sweep.slots import Slot
from lzsweep.sweep.storage import open_storage
from lzsweep.sweep.studies import create_study, open_study
from lzsweep.sweep.study import Study
from lzsweep.sweep.worker import Worker
from lzsweep.tracking.postgres import MAX_CONNECTIONS

N_WORKERS = 64
N_TRIALS = 1000
READY_S = 300.0
"""Time until all processes are ready."""
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """What so many processes did.

    Attributes:
        wall_s: from the moment when all are ready to the end of the last trial.
        longest_s: the longest wait for a trial.
        n_told: trials told.
        n_faults: warnings and errors, of all processes.
        n_connections: to the database at a time, at most.
    """

    wall_s: float
    longest_s: float
    n_told: int
    n_faults: int
    n_connections: int


def rows(folder: Path, *, quick: bool) -> Iterator[Row]:
    n_workers, n_trials = (4, 24) if quick else (N_WORKERS, N_TRIALS)
    with postgres(folder / "scale") as url:
        ours = measure(url, _be_worker, n_workers, n_trials)
        plain = measure(url, _be_optuna, n_workers, n_trials)
    whom = f"plain Optuna; {n_workers} processes, {n_trials} trials, PostgreSQL"
    rate, peer = (o.n_told / o.wall_s for o in (ours, plain))
    yield Row("scale_rate", whom, rate, peer, "trials/s", ">= 0.5")
    yield Row("scale_longest_ask", whom, ours.longest_s, plain.longest_s, "s", "<= 2")
    yield Row("scale_errors", "trials", ours.n_faults, ours.n_told, "", "<= 0")
    most = "connections that the shared server's PostgreSQL allows"
    yield Row("scale_connections", most, ours.n_connections, MAX_CONNECTIONS, "", "<= 1")


def measure(url: str, be: Callable[..., Any], n_workers: int, n_trials: int) -> Outcome:
    """Let so many processes train nothing until so many trials are told.

    Args:
        url: of the database.
        be: what a process is; told the database, the gate, the counter and where to report.
        n_workers: processes.
        n_trials: of all of them together.
    """
    name = be.__name__
    _prepare(url, name, n_trials)
    gate = _fork.Barrier(n_workers + 1, timeout=READY_S)
    counter, found = _fork.Value("i", n_trials), _fork.Queue()
    processes = [
        _fork.Process(target=_report, args=(be, number, url, name, gate, counter, found))
        for number in range(n_workers)
    ]
    for process in processes:
        process.start()
    with _connections(url) as counts:
        try:
            gate.wait()
        except threading.BrokenBarrierError:
            raise SystemExit("a process ended before all were ready") from None
        began = time.monotonic()
        reports = [_take(found, processes) for _ in processes]
    for process in processes:
        process.join()
    ends = [end for report in reports for end in report["ends"]]
    outcome = Outcome(
        wall_s=max(ends) - began,
        longest_s=max(wait for report in reports for wait in report["waits"]),
        n_told=len(ends),
        n_faults=sum(report["n_faults"] for report in reports),
        n_connections=max(counts),
    )
    print(f"  {name}: {outcome}", flush=True)
    return outcome


class Untrained(Worker):
    """A worker whose trials take no time; all else is as it is."""

    def __init__(self, study: Study, cfg: Any, number: int) -> None:
        super().__init__(study, cfg)
        self._name = f"{self._name}-{number}"
        self.waits: list[float] = []
        self.ends: list[float] = []

    def work(self) -> None:
        (slot,) = self._slots
        filling = threading.Thread(target=self._fill, args=(slot,))
        filling.start()
        while filling.is_alive():
            self._watch()
            filling.join(5.0)

    def _claim(self, slot: Slot) -> Claim | None:
        began = time.monotonic()
        claim = super()._claim(slot)
        if claim is not None:
            self.waits.append(time.monotonic() - began)
        return claim

    def _train_or_tell(self, claim: Claim, slot: Slot) -> None:
        value = float(claim.trial.number % 7)
        self._study.report(claim, 1, value)
        self._study.tell(claim, "complete", [value], metrics={"val/x": value}, train_s=0.0)
        self.ends.append(time.monotonic())


def _be_worker(number: int, url: str, name: str, gate: Any, counter: Any) -> Untrained:
    del counter  # the study's budget counts
    study = open_study(url, name)
    study.set_deciders(_sampler(number), _pruner())
    cfg = compose_sweep([f"study.storage='{url}'", "worker.slots=1"])
    with open_dict(cfg):
        HydraConfig.instance().set_config(cfg)
        del cfg.hydra
    worker = Untrained(study, cfg, number)
    gate.wait()
    worker.work()
    return worker


@dataclass
class Plain:
    """What one process of plain Optuna did."""

    waits: list[float]
    ends: list[float]


def _be_optuna(number: int, url: str, name: str, gate: Any, counter: Any) -> Plain:
    study = optuna.load_study(
        study_name=name, storage=open_storage(url), sampler=_sampler(number), pruner=_pruner()
    )
    done = Plain([], [])
    gate.wait()
    while True:
        with counter.get_lock():
            counter.value -= 1
            if counter.value < 0:
                return done
        began = time.monotonic()
        trial = study.ask(DISTRIBUTIONS)
        done.waits.append(time.monotonic() - began)
        value = float(trial.number % 7)
        trial.report(value, 1)
        trial.should_prune()
        study.tell(trial, value)
        done.ends.append(time.monotonic())


def _sampler(number: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=number)


def _pruner() -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)


def _prepare(url: str, name: str, n_trials: int) -> None:
    if name == _be_optuna.__name__:
        storage = open_storage(url)
        optuna.create_study(study_name=name, storage=storage)
    else:
        conf = (f"file://{conf_dir()}",)
        study, _ = create_study(url, name, record(conf=conf), Budget(n_trials=n_trials))
        storage = study._storage
    storage.engine.dispose()  # no child shares a connection


class _Faults(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.n = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.n += 1
        print(f"  {record.getMessage()}", flush=True)


def _report(
    be: Callable[..., Any], number: int, url: str, name: str, gate: Any, counter: Any, found: Any
) -> None:
    faults = _Faults()
    logging.getLogger().addHandler(faults)
    optuna.logging.enable_propagation()
    try:
        done = be(number, url, name, gate, counter)
    except BaseException:
        gate.abort()  # nobody need wait for this one
        raise
    found.put({"waits": done.waits, "ends": done.ends, "n_faults": faults.n})


def _take(found: Any, processes: Sequence[Any]) -> dict[str, Any]:
    while True:
        with suppress(queue.Empty):
            report: dict[str, Any] = found.get(timeout=5.0)
            return report
        if codes := [p.exitcode for p in processes if p.exitcode]:
            raise SystemExit(f"a process ended with exit code {codes[0]}")


@contextmanager
def _connections(url: str) -> Iterator[list[int]]:
    """Count, beside the block, what is connected to a database."""
    counts, over = [0], threading.Event()

    def count() -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        with psycopg.connect(url, autocommit=True) as connection:
            while not over.wait(0.2):
                row = connection.execute(query).fetchone()
                counts.append(row[0] - 1 if row else 0)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()

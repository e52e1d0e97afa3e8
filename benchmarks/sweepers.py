"""Sweeps by ours and by each peer, as the command lines that their users type.

All train with the same function in the same configuration and log to the same MLflow server: ours
through its journal, the peers through Lightning's MLFlowLogger. One CPU thread a training for all,
so that as many trainings as cores do not fight for them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clock import Span, clock_override, read_spans
from lzsweep.tracking.client import connect, experiment_id

ROOT = Path(__file__).parents[1]
PEERS_BIN = ROOT / "build/bench/peers/.venv/bin"
LOOK_S = 10.0
EXPERIMENT = "peers"

STOCK = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=600")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.backend=loky")


@dataclass(frozen=True)
class Sweep:
    """What is swept, the same for all.

    Attributes:
        overrides: of each training.
        key: what is searched; `plain_key` is where the composed configuration has its value.
        text: its space in Hydra's syntax.
        values: for a tool that has another syntax.
        metric: the objective, minimised.
    """

    overrides: Sequence[str]
    key: str
    plain_key: str
    text: str
    values: Sequence[float]
    metric: str
    n_trials: int
    n_slots: int


@dataclass(frozen=True)
class Outcome:
    """What a command did: its trainings, when it began, and how long it took."""

    spans: list[Span]
    began: float
    wall_s: float


class Sweepers:
    """Runs sweeps, each in a folder of its own below `folder`, with output in its `log`.

    Args:
        folder: made where it is not there.
        tracking_uri: the MLflow server of all.
        peers: where the peers' programs are.
    """

    def __init__(self, folder: Path, tracking_uri: str, peers: Path = PEERS_BIN) -> None:
        self._folder = folder
        self._peers = peers
        # Two of a peer's trials that make it at the same moment fail.
        experiment_id(connect(tracking_uri), tracking_uri, EXPERIMENT)
        self._uri = tracking_uri
        self._env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        # Users' Pythons keep what they compile; where this is set they would do it each time.
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)

    def ours(self, name: str, sweep: Sweep, *extra: str, n_workers: int = 1) -> Outcome:
        """Pull workers, which share the slots; one of them runs in the command's own process."""
        work = self._work(name)
        command = [
            *(sys.executable, "-m", "lzsweep", "-m", *sweep.overrides),
            f"{sweep.key}={sweep.text}",
            f"study.n_trials={sweep.n_trials}",
            *(f"worker.count={n_workers}", f"worker.slots={sweep.n_slots // n_workers}"),
            clock_override(work / "spans", metric=sweep.metric),
            *extra,
        ]
        return self._run(name, command, work, sweep.n_trials)

    def hydra(self, name: str, sweep: Sweep, *extra: str) -> Outcome:
        """The stock Optuna sweeper with some launcher, in batches of as many as slots."""
        work = self._work(name)
        command = [
            *(str(self._peers / "lzsweep"), "-m", "hydra/sweeper=optuna", *sweep.overrides),
            f"{sweep.key}={sweep.text}",
            f"hydra.sweeper.n_trials={sweep.n_trials}",
            f"hydra.sweeper.n_jobs={sweep.n_slots}",
            *self._logger(),
            clock_override(work / "spans", metric=sweep.metric, first="mlflow"),
            *extra,
        ]
        return self._run(name, command, work, sweep.n_trials)

    def stock(self, name: str, sweep: Sweep, *extra: str) -> Outcome:
        return self.hydra(name, sweep, *STOCK, *extra)

    def joblib(self, name: str, sweep: Sweep, *extra: str) -> Outcome:
        return self.hydra(name, sweep, *JOBLIB, f"hydra.launcher.n_jobs={sweep.n_slots}", *extra)

    def ray(self, name: str, sweep: Sweep) -> Outcome:
        """Ray Tune; see `peers.raytune` for how it is set."""
        work = self._work(name)
        clock = clock_override(work / "spans", metric=sweep.metric, first="mlflow")
        job = {
            "overrides": [*sweep.overrides, *self._logger(), clock],
            "key": sweep.plain_key,
            "values": list(sweep.values),
            "slots": sweep.n_slots,
            "metric": sweep.metric,
        }
        (work / "job.json").write_text(json.dumps(job))
        command = [str(self._peers / "python"), "-m", "benchmarks.peers.raytune", "job.json"]
        pending = {"TUNE_MAX_PENDING_TRIALS_PG": str(sweep.n_slots)}
        return self._run(name, command, work, sweep.n_trials, pending)

    def _logger(self) -> list[str]:
        return [
            "logger._target_=pytorch_lightning.loggers.MLFlowLogger",
            f"+logger.experiment_name={EXPERIMENT}",
            f"+logger.tracking_uri='{self._uri}'",
        ]

    def _work(self, name: str) -> Path:
        work = self._folder / name
        shutil.copytree(ROOT / "benchmarks/conf", work / "conf")
        return work

    def _run(
        self,
        name: str,
        command: Sequence[str],
        work: Path,
        n_trials: int,
        env: dict[str, str] | None = None,
    ) -> Outcome:
        began = time.monotonic()
        with (work / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=work, env=self._env | (env or {}), stdout=log, stderr=log
            )
            while process.poll() is None:
                try:
                    process.wait(LOOK_S)
                except subprocess.TimeoutExpired:
                    n_done = len(read_spans(work / "spans"))
                    _say(f"{name}: {n_done} of {n_trials}, {time.monotonic() - began:.0f} s")
        wall_s = time.monotonic() - began
        spans = read_spans(work / "spans")
        if process.returncode or not spans:
            tail = (work / "log").read_text()[-3000:]
            raise SystemExit(f"{name} ended with exit code {process.returncode}:\n{tail}")
        mean_s = statistics.mean(span.seconds for span in spans)
        _say(f"{name}: {len(spans)} trainings of {mean_s:.2f} s in {wall_s:.1f} s")
        return Outcome(spans, began, wall_s)


def _say(text: str) -> None:
    print(f"  {text}", flush=True)

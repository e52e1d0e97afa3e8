"""What a study keeps: its record, and its trials as people see them.

Optuna's rows are attempts. A trial is all rows of one origin, and its number is the number of the
first row. Kept in the row of an attempt, each written by the worker that owns it:

    system attribute `origin`  {"number", "attempt", "retries"}; absent on a first attempt
    system attribute `enqueued`  the point that was queued, as JSON, if it left something open
    user attribute   `rung 3`  {seed or "": [objectives at rung 3]}; only for several of either
    user attribute   `seeds`   {seed: {"values", "metrics", "train_s"}} of those complete
    user attribute   `noted`   {what the pruner noted there: rung}
    user attribute   `claim`   {"host", "boot", "pid", "born", "worker", "share", "threads"}
    user attribute   `end`     {"kind", "reason", "metrics", "train_s", "run_id"}

A queued point that left something open, but can only become one that is known, ends as a `repeat`:
its row stays, and there is no trial of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState, create_trial

from lzsweep.config import COSTS
from lzsweep.errors import UserError
from lzsweep.sweep.space import Value, shown_params
from lzsweep.sweep.standing import Climb
from lzsweep.sweep.trial import Resource
from lzsweep.tracking.client import HIDDEN, redact, resolve_uri

State = Literal["complete", "pruned", "failed", "running", "waiting"]
STATES: tuple[State, ...] = ("complete", "pruned", "failed", "running", "waiting")
Ending = Literal["complete", "pruned", "infeasible", "error", "infrastructure"]
RUNG = "rung "
"""Begins the name of the attribute that holds the objectives at a rung."""
REPEAT = "repeat"
"""Ends a row that is no trial."""


@dataclass(frozen=True)
class SeedResult:
    """What came of one complete training of a trial that has several."""

    seed: int
    values: tuple[float, ...]
    metrics: Mapping[str, float]
    train_s: float


@dataclass(frozen=True)
class Trial:
    """One trial as people see it: the latest attempt, under the number of the first."""

    number: int
    attempt: int
    retries: int
    state: State
    params: Mapping[str, Value]
    values: tuple[float, ...] | None
    metrics: Mapping[str, float]
    curve: Mapping[int, float]
    ending: Ending | None
    reason: str
    run_id: str | None
    started: datetime | None
    finished: datetime | None
    train_s: float | None
    worker: str | None
    row: int = field(repr=False)  # Optuna's id of the latest attempt
    threads: int = 0
    seeds: tuple[SeedResult, ...] = ()  # where there are several: those complete

    @property
    def is_finished(self) -> bool:
        return self.state in ("complete", "pruned", "failed")

    @property
    def awaits_retry(self) -> bool:
        """Whether it was begun and waits for its next attempt."""
        return self.state == "waiting" and self.attempt > 1


@dataclass(frozen=True)
class Record:
    """What a study sweeps, written once by whoever creates it and frozen from then on.

    Attributes:
        space: searched key -> its sweep, as people read it.
        tree: the search space itself, as `Space.to_json` gives it.
        is_recorded: the study and its trials have runs in MLflow.
    """

    space: Mapping[str, str]
    tree: tuple[Mapping[str, Any], ...]
    fixed: tuple[str, ...]
    settings: Mapping[str, str]
    metrics: tuple[str, ...]
    directions: tuple[Literal["minimize", "maximize"], ...]
    folder: str
    conf: tuple[str, ...]
    config_name: str
    tracking_uri: str
    command: tuple[str, ...]
    cwd: str
    code: Mapping[str, str]
    created: float
    resource: Resource = "epochs"
    rung: float = 1.0
    seeds: int = 1
    is_recorded: bool = False
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def lead(self) -> int:
        """Which objective ranks a front: the first that is no cost, as for checkpoints."""
        return next((n for n, metric in enumerate(self.metrics) if metric not in COSTS), 0)

    def server(self, given: str) -> str:
        """The MLflow server that the runs of this study are on.

        Args:
            given: what the command line or the environment names. What is recorded has no
                password, so where it had one, this is taken.

        Raises:
            UserError: it is needed, but names another server.
        """
        if HIDDEN not in self.tracking_uri:
            return self.tracking_uri
        if self.is_recorded and _bare(redact(resolve_uri(given))) != _bare(self.tracking_uri):
            raise UserError(
                f"this study logs to {self.tracking_uri}, whose password is not recorded, but the"
                f" server given is {redact(given)}; set MLFLOW_TRACKING_URI to it, or its password"
                " as MLFLOW_TRACKING_PASSWORD"
            )
        return given

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        lists = {"tree", "fixed", "metrics", "directions", "conf", "command"}
        values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in data.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(
                "a study is read by the version that made it, but this one was made by another"
                f" ({error}); use that version, or choose another study.name"
            ) from error


@dataclass(frozen=True)
class Claim:
    """The right to train one attempt of a trial; its holder reports and tells."""

    trial: Trial
    row: int


def _bare(uri: str) -> str:
    return uri.replace(f"{HIDDEN}@", "")


def trial_of(row: FrozenTrial) -> Trial:
    """The trial, as of this attempt."""
    origin = row.system_attrs.get("origin", {})
    claim = row.user_attrs.get("claim", {})
    end = row.user_attrs.get("end", {})
    return Trial(
        number=origin.get("number", row.number),
        attempt=origin.get("attempt", 1),
        retries=origin.get("retries", 0),
        state=_state_of(row, end),
        params=shown_params(row.params, row.distributions),
        values=tuple(row.values) if row.state == TrialState.COMPLETE else None,
        metrics=end.get("metrics", {}),
        curve={rung: vector[0] for rung, vector in vectors_of(row).items()},
        ending=end.get("kind"),
        reason=end.get("reason", ""),
        run_id=end.get("run_id"),
        started=row.datetime_start,
        finished=row.datetime_complete,
        train_s=end.get("train_s"),
        worker=claim.get("worker"),
        row=row._trial_id,
        threads=claim.get("threads", 0),
        seeds=tuple(
            SeedResult(int(seed), tuple(found["values"]), found["metrics"], found["train_s"])
            for seed, found in row.user_attrs.get("seeds", {}).items()
        ),
    )


def is_repeat(row: FrozenTrial) -> bool:
    """Whether the row is no trial, because it would have repeated one."""
    return row.state == TrialState.FAIL and row.user_attrs.get("end", {}).get("kind") == REPEAT


def device_hours(rows: Iterable[FrozenTrial]) -> float:
    """Hours of a whole device that these attempts took together, lost ones included."""
    seconds = 0.0
    for row in rows:
        if row.datetime_start and (claim := row.user_attrs.get("claim")):
            ended = row.datetime_complete or datetime.now()
            seconds += (ended - row.datetime_start).total_seconds() * claim["share"]
    return seconds / 3600


def vectors_of(row: FrozenTrial) -> dict[int, tuple[float, ...]]:
    """The objectives at each rung, in the order of the rungs; means over the seeds there."""
    kept = {
        int(key.removeprefix(RUNG)): [*by_seed.values()]
        for key, by_seed in row.user_attrs.items()
        if key.startswith(RUNG)
    }
    vectors = {r: tuple(map(fmean, zip(*kept[r], strict=True))) for r in sorted(kept)}
    return vectors or {r: (v,) for r, v in sorted(row.intermediate_values.items())}


def climb_of(row: FrozenTrial) -> Climb:
    """The trial as a pruner sees it."""
    number = trial_of(row).number
    return Climb(number, row.state, vectors_of(row), row.user_attrs.get("noted", {}))


def _state_of(row: FrozenTrial, end: Mapping[str, Any]) -> State:
    if row.state == TrialState.PRUNED and end.get("kind") == "infeasible":
        return "failed"
    names: dict[TrialState, State] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }
    return names[row.state]


def next_attempt(row: FrozenTrial, trial: Trial, retries: int) -> FrozenTrial:
    """A waiting row that goes on where `row` was interrupted."""
    origin = {"number": trial.number, "attempt": trial.attempt + 1, "retries": retries}
    return create_trial(
        state=TrialState.WAITING,
        params=row.params,
        distributions=row.distributions,
        user_attrs={k: v for k, v in row.user_attrs.items() if k not in ("claim", "end")},
        system_attrs={**row.system_attrs, "origin": origin},
        intermediate_values=row.intermediate_values,
    )

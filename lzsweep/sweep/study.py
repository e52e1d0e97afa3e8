"""The study database: who trains which trial, and how each trial ended.

One Optuna study on SQLite (one machine) or PostgreSQL (several). Optuna's rows are attempts; a
trial is all rows of one origin, and its number is the number of the first row. Only this module
knows that: everybody else sees `Trial` records.

Kept in the study: `record` (what is swept, frozen at its creation), `budget` (the last command's
word), `stopped` (why it ended early), `warm_start` (the study that the sampler learns from, and
until when), `jobs` (ids of what was submitted to a cluster), `barren JOB` (times that a job got to
no checkpoint) and `sanity` (of a module that is not ours: the process that trains one batch before
any trial, or "over"). What reads, decides and writes holds the study-wide lock.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from statistics import fmean

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from lzsweep.errors import UserError
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.process import is_dead, this_process
from lzsweep.sweep.proposal import propose
from lzsweep.sweep.record import (
    REPEAT,
    RUNG,
    Claim,
    Ending,
    Record,
    SeedResult,
    Trial,
    climb_of,
    device_hours,
    is_repeat,
    next_attempt,
    trial_of,
)
from lzsweep.sweep.rows import (
    KeptRows,
    OpenRows,
    add_rows,
    add_to_end,
    begin_row,
    end_row,
    find_stale,
    hand_over,
    lost_when_finished,
    open_rows,
)
from lzsweep.sweep.space import Point, Space, Value, point_key
from lzsweep.sweep.standing import each_trial_once, judge
from lzsweep.sweep.storage import DATABASE_ERRORS, GRACE_S, database_lock

optuna.logging.set_verbosity(optuna.logging.WARNING)
# Meant for those who rely on Optuna's own heartbeat thread; here the worker beats.
warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
warnings.filterwarnings("ignore", category=ExperimentalWarning)


class Study:
    """A study, opened.

    Each process needs an object of its own; the threads of one may share it: what changes the
    study does so under its lock, in the database.
    """

    def __init__(self, storage: RDBStorage, study: optuna.Study) -> None:
        self._storage = storage
        self._study = study
        study._storage = KeptRows(storage)
        # What was made of a row of Optuna's holds for as long as the cache has the very same row.
        self._made: dict[int, tuple[FrozenTrial, Trial]] = {}
        self._made_points: dict[int, tuple[Trial, Point | None]] = {}
        self._lessons: Sequence[FrozenTrial] = ()
        self._asked: float | None = None  # when it was last said who is stale
        self._hears_from = 0.0  # on the monotonic clock: from when silence of others counts
        self.name: str = study.study_name

    @cached_property
    def record(self) -> Record:
        """What is swept; it never changes."""
        return self._told()[0]

    @cached_property
    def space(self) -> Space:
        """What is searched, as it was when the study was created."""
        record = self.record
        return Space.from_json(record.tree, record.fixed)

    @cached_property
    def _size(self) -> int | None:
        return self.space.size()

    @property
    def budget(self) -> Budget:
        return self._told()[1]

    def _told(self) -> tuple[Record, Budget, str]:
        """Record, budget and why it was stopped, in one read."""
        kept = self._study.user_attrs
        record, budget = Record.from_json(kept["record"]), Budget(**kept["budget"])
        return record, budget, str(kept.get("stopped", ""))

    @property
    def n_trials(self) -> int:
        return self.budget.n_trials

    def set_deciders(
        self, sampler: BaseSampler, pruner: BasePruner, lessons: Sequence[FrozenTrial] = ()
    ) -> None:
        """Set who chooses the points, who stops the bad ones, what the first learns besides."""
        self._study.sampler = sampler
        self._study.pruner = pruner
        self._lessons = lessons

    def set_teacher(self, name: str, until: datetime) -> None:
        """Let the samplers learn from what another study had found at a time."""
        self._study.set_user_attr("warm_start", {"study": name, "until": until.isoformat()})

    def teacher(self) -> tuple[str, datetime] | None:
        kept = self._study.user_attrs.get("warm_start")
        return (kept["study"], datetime.fromisoformat(kept["until"])) if kept else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The one study-wide lock, released by the death of its holder as well."""
        with database_lock(self._storage.engine, f"lzsweep/{self.name}"):
            yield

    # What there is

    def rows(self) -> list[FrozenTrial]:
        """Optuna's rows, for samplers; whoever looks at trials takes `trials`."""
        return self._study.get_trials(deepcopy=False)

    def trials(self) -> list[Trial]:
        """All trials in the order of their numbers, each once whatever its attempts."""
        return [self._trial_of(row) for row in self._latest_rows().values()]

    def trial(self, number: int) -> Trial:
        """One of them.

        Raises:
            UserError: there is no such trial.
        """
        trials = {trial.number: trial for trial in self.trials()}
        if number not in trials:
            known = ", ".join(map(str, trials)) or "none yet"
            if len(trials) > 10:
                known = f"{len(trials)} from {min(trials)} to {max(trials)}"
            raise UserError(
                f"a trial must exist, but {self.name} has no trial {number}, only {known};"
                f" see them: lzsweep status {self.name}"
            )
        return trials[number]

    def _trial_of(self, row: FrozenTrial) -> Trial:
        made = self._made.get(row._trial_id)
        if made is None or made[0] is not row:
            made = self._made[row._trial_id] = row, trial_of(row)
        return made[1]

    def _latest_rows(self) -> dict[int, FrozenTrial]:
        latest: dict[int, tuple[int, FrozenTrial]] = {}
        for row in self.rows():
            origin = row.system_attrs.get("origin", {})
            number, attempt = origin.get("number", row.number), origin.get("attempt", 1)
            if number not in latest or latest[number][0] < attempt:
                latest[number] = attempt, row
        rows = {number: latest[number][1] for number in sorted(latest)}
        return {number: row for number, row in rows.items() if not is_repeat(row)}

    def attempts(self) -> list[Trial]:
        """Each try at a trial, as of its own end, in the order in which they were made."""
        return [trial_of(row) for row in self.rows() if not is_repeat(row)]

    def is_done(self, trials: Sequence[Trial] | None = None) -> bool:
        """Whether the budget is spent and each trial that was begun has ended."""
        trials = self.trials() if trials is None else trials
        if any(t.state == "running" or t.awaits_retry for t in trials):
            return False
        return sum(t.is_finished for t in trials) >= self.n_trials or bool(self.spent(trials))

    def spent(self, trials: Sequence[Trial] | None = None) -> str:
        """What of the budget but the number of trials is spent, for people; else empty."""
        trials = self.trials() if trials is None else trials
        record, budget, _ = self._told()
        return self._spent(trials, record, budget)

    def _spent(self, trials: Sequence[Trial], record: Record, budget: Budget) -> str:
        finished = [t for t in trials if t.is_finished]
        is_open = self._size is not None and len(finished) < budget.n_trials
        if is_open and len(self._points(finished)) == self._size:
            return "every point of the space is trained"
        hours = 0.0 if budget.max_device_hours is None else device_hours(self.rows())
        return budget.spent(trials, record.directions, time.time() - record.created, hours)

    def _points(self, trials: Sequence[Trial]) -> set[Point]:
        """The points of these trials; one with parameters yet to be chosen is none."""
        return {point for t in trials if (point := self._point_of(t)) is not None}

    def _point_of(self, trial: Trial) -> Point | None:
        made = self._made_points.get(trial.row)
        if made is None or made[0] is not trial:
            point = point_key(trial.params) if self.space.is_whole(trial.params) else None
            made = self._made_points[trial.row] = trial, point
        return made[1]

    def best(self) -> list[Trial]:
        """The best complete trial, or the Pareto front in the order of their numbers."""
        if not any(t.state == "complete" for t in self.trials()):
            return []
        rows = sorted(self._study.best_trials, key=lambda row: row.number)
        trials = sorted((trial_of(row) for row in rows), key=lambda trial: trial.number)
        return trials if len(self._study.directions) > 1 else trials[:1]

    def stop(self, reason: str) -> None:
        """Let no further trial start and the running ones checkpoint and go back.

        An empty reason lifts an earlier stop.
        """
        self._study.set_user_attr("stopped", reason)

    def stopped(self) -> str:
        """Why the study was stopped before its budget was spent, or an empty text."""
        return str(self._study.user_attrs.get("stopped", ""))

    # Jobs of a cluster

    def jobs(self) -> list[str]:
        """Ids of all jobs and job arrays that were submitted for this study."""
        return list(self._study.user_attrs.get("jobs", []))

    def add_jobs(self, ids: Sequence[str]) -> None:
        """Note jobs, each once, so that `lzsweep stop` finds them and no others."""
        with self.lock():
            self._study.set_user_attr("jobs", list(dict.fromkeys([*self.jobs(), *ids])))

    def count_barren(self, job: str) -> int:
        """Note that a job's time ended without any checkpoint; how often that happened."""
        key = f"barren {job}"
        n_times = int(self._study.user_attrs.get(key, 0)) + 1
        self._study.set_user_attr(key, n_times)
        return n_times

    # The one batch before any trial

    def take_sanity(self) -> bool | None:
        """Take it on to train one batch and see what is logged.

        Returns:
            Whether this process is to do it, and end it; None while another process does.
        """
        with self.lock():
            mark, me = self._study.user_attrs.get("sanity"), this_process()
            if mark == "over" or self.stopped() or any(t.curve or t.values for t in self.trials()):
                return False
            if mark and mark != me and not is_dead(mark):
                return None
            self._study.set_user_attr("sanity", me)
            return True

    def end_sanity(self, *, is_over: bool) -> None:
        """Say that the batch need not be trained again, or that another process is to do it."""
        self._study.set_user_attr("sanity", "over" if is_over else "")

    # Claim, report, tell

    def enqueue(self, points: Sequence[Mapping[str, Value]]) -> None:
        """Queue points that no trial has yet; called under the lock.

        A point may leave parameters open, which the sampler chooses when it is claimed.
        """
        queued = {row.system_attrs.get("enqueued") for row in self.rows()}
        known = self._points(self.trials())
        new = []
        for point in points:
            is_whole = self.space.is_whole(point)
            text = json.dumps(point, sort_keys=True)
            if (point_key(point) in known) if is_whole else (text in queued):
                continue
            known.add(point_key(point))
            queued.add(text)
            parameters = [p for p in self.space.active(point) if p.key in point]
            new.append(
                create_trial(
                    state=TrialState.WAITING,
                    params={p.name: point[p.key] for p in parameters},
                    distributions={p.name: p.distribution for p in parameters},
                    system_attrs={} if is_whole else {"enqueued": text},
                )
            )
        add_rows(self._storage, self._study._study_id, new)

    def claim(self, worker: str, share: float = 1.0, threads: int = 0) -> Claim | None:
        """Take the next attempt to train, or None when there is none right now.

        Retries go first: they belong to trials that are counted already, and are trained whatever
        of the budget is spent by now. A new point is taken only while finished, running and
        retried trials together stay below the budget, and only one that no trial has. What is
        queued and can only become a point that some trial has is dropped.

        Args:
            worker: name of the slot that claims, for people.
            share: the part of a device that the slot is.
            threads: CPU threads of the slot, by which a training repeats exactly.
        """
        mark = {**this_process(), "worker": worker, "share": share, "threads": threads}
        with self.lock():
            trials = self._without_repeats(self.trials())
            if not self.may_claim(trials):
                return None
            known = self._points(trials)
            waiting = [t for t in trials if t.state == "waiting"]
            queued = [*(t for t in waiting if t.awaits_retry), *waiting]
            try:
                frozen = self._start(queued[0].row) if queued else self._create()
                if frozen is None:
                    return None
                new = self._propose(frozen, known)
                begin_row(self._storage, frozen._trial_id, new, mark)
            except UpdateFinishedTrialError:
                return None  # the database was lost, and the lock with it: others ended this row
            frozen.distributions = frozen.distributions | {n: d for n, (d, _) in new.items()}
            frozen.params = frozen.params | {name: value for name, (_, value) in new.items()}
            frozen.set_user_attr("claim", mark)
            return Claim(trial_of(frozen), frozen._trial_id)

    def _without_repeats(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """All but those that wait to become a point, but none is left to them; they end."""
        open_ = [t for t in trials if t.state == "waiting" and self._point_of(t) is None]
        if not open_:
            return trials
        known = self._points(trials)
        repeats = {t.number: t for t in open_ if self.space.n_left(t.params, known) == 0}
        for trial in repeats.values():
            with suppress(UpdateFinishedTrialError):
                if self._start(trial.row):  # the database expects an end to have a start
                    end = {"kind": REPEAT, "reason": "some trial has each point left to it"}
                    end_row(self._storage, trial.row, TrialState.FAIL, end=end)
        return [t for t in trials if t.number not in repeats]

    def _create(self) -> FrozenTrial:
        # As Study.ask, which would look for a waiting trial once more, and read the row again.
        self._study._thread_local.cached_all_trials = None
        return self._storage._create_new_trial(self._study._study_id)

    def _start(self, row: int) -> FrozenTrial | None:
        if not self._storage.set_trial_state_values(row, TrialState.RUNNING):
            return None  # the database was lost, and the lock with it: another has begun it
        return self._storage.get_trial(row)

    def _propose(
        self, row: FrozenTrial, known: Collection[Point]
    ) -> dict[str, tuple[BaseDistribution, Value]]:
        try:
            return propose(self._study, row, self.space, known, self._lessons)
        except (UpdateFinishedTrialError, *DATABASE_ERRORS):
            raise
        except Exception:
            # No worker has it, so whoever claims next may as well: it is left as if queued.
            self._storage.set_trial_state_values(row._trial_id, TrialState.WAITING)
            raise

    def may_claim(self, trials: Sequence[Trial] | None = None) -> bool:
        """Whether there is something to claim; who has the lock can rely on it."""
        trials = self.trials() if trials is None else trials
        record, budget, stopped = self._told()
        if stopped:
            return False
        if any(t.awaits_retry for t in trials):
            return True
        if self._spent(trials, record, budget):
            return False
        if _count_begun(trials) >= budget.n_trials:
            return False
        is_waiting = any(t.state == "waiting" for t in trials)
        is_all_begun = self._size is not None and len(self._points(trials)) >= self._size
        return is_waiting or not (self.space.is_grid or is_all_begun)

    def has_begun_all(self) -> bool:
        """Whether as many trials were begun as are wanted."""
        return _count_begun(self.trials()) >= self.n_trials

    def open_rows(self) -> OpenRows:
        """The attempts that are running or waiting, by one cheap query.

        While they stay the same there is nothing new to claim, unless the budget was raised.
        """
        return open_rows(self._storage, self._study._study_id)

    def unheard(self, worker: str) -> Claim | None:
        """The claim of a slot that trains nothing: the database was lost before it answered."""
        for trial in self.trials():
            if trial.state == "running" and trial.worker == worker:
                return Claim(trial, trial.row)
        return None

    def report(self, claim: Claim, rung: int, *values: float, seed: int | None = None) -> bool:
        """Record the objectives at a rung of the pruning resource; whether to prune now.

        Args:
            claim: of the attempt.
            rung: counts from 1.
            values: the objectives, in the order of the record.
            seed: which training of the trial this is, where there are several.

        Raises:
            TrialLost: the trial was taken away from this worker.
        """
        if len(values) > 1 or seed is not None:
            return self._report_vector(claim, rung, values, "" if seed is None else str(seed))
        row = self._storage.get_trial(claim.row)
        with lost_when_finished(claim):
            if rung not in row.intermediate_values:
                self._storage.set_trial_intermediate_value(claim.row, rung, values[0])
                row.intermediate_values[rung] = values[0]
            # Hyperband derives the bracket from the number, so every attempt shows its origin's.
            row.number = claim.trial.number
            # A resumed attempt repeats rungs, and knows nothing of those above.
            curve = row.intermediate_values
            row.intermediate_values = {r: v for r, v in curve.items() if r <= rung}
            view = each_trial_once(self._study, self._latest_rows)
            return bool(self._study.pruner.prune(view, row))  # it writes into the row, too

    def _report_vector(self, claim: Claim, rung: int, values: Sequence[float], seed: str) -> bool:
        # Optuna refuses reports for several objectives, and its TPE pruned trials that have some.
        name = f"{RUNG}{rung}"
        with lost_when_finished(claim):
            kept = self._storage.get_trial(claim.row).user_attrs.get(name, {})
            if seed not in kept:
                kept = {**kept, seed: list(values)}
                self._storage.set_trial_user_attr(claim.row, name, kept)
            if len(values) == 1:
                mean = fmean(vector[0] for vector in kept.values())
                self._storage.set_trial_intermediate_value(claim.row, rung, mean)
        climbs = [climb_of(row) for row in self._latest_rows().values()]
        is_bad, noted = judge(
            self._study.pruner,
            self.name,
            self.record.directions,
            climbs,
            claim.trial.number,
            rung,
        )
        before = self._storage.get_trial(claim.row).user_attrs.get("noted", {})
        if noted.keys() - before.keys():
            with lost_when_finished(claim):
                self._storage.set_trial_user_attr(claim.row, "noted", {**before, **noted})
        return is_bad

    def keep_seed(self, claim: Claim, result: SeedResult) -> None:
        """Record a complete training of a trial that has several, for its later attempts too.

        Raises:
            TrialLost: the trial was taken away from this worker.
        """
        found = {k: v for k, v in asdict(result).items() if k != "seed"}
        with lost_when_finished(claim):
            kept = self._storage.get_trial(claim.row).user_attrs.get("seeds", {})
            self._storage.set_trial_user_attr(
                claim.row, "seeds", {**kept, str(result.seed): found}
            )

    def tell(
        self,
        claim: Claim,
        kind: Ending,
        values: Sequence[float] | None = None,
        *,
        reason: str = "",
        metrics: Mapping[str, float] | None = None,
        train_s: float | None = None,
        run_id: str | None = None,
    ) -> None:
        """End an attempt for good: no retry follows.

        Raises:
            TrialLost: the trial was taken away from this worker.
        """
        end = {
            "kind": kind,
            "reason": reason,
            "metrics": dict(metrics or {}),
            "train_s": train_s,
            "run_id": run_id,
        }
        # FAIL would teach the sampler nothing; a pruned trial without values counts as bad.
        state = {
            "complete": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "infeasible": TrialState.PRUNED,
        }.get(kind, TrialState.FAIL)
        with lost_when_finished(claim):
            frozen = self._storage.get_trial(claim.row)
            if kind == "pruned" and len(self._study.directions) == 1:
                curve = frozen.intermediate_values
                values = [curve[max(curve)]] if curve else None
            self._study.sampler.after_trial(self._study, frozen, state, values)
            end_row(self._storage, claim.row, state, values, end=end)

    def name_run(self, trial: Trial, run_id: str) -> None:
        """Note the run of a trial that ended before MLflow had heard of it."""
        add_to_end(self._storage, trial.row, run_id=run_id)

    def take_up(self, trial: Trial, reason: str, *, max_retries: int) -> str | None:
        """Hand the attempt of a worker that was lost over, if nobody has heard of it meanwhile.

        Returns:
            As `retry`; None where there was nothing to take up any more.
        """
        with self.lock():
            if not find_stale(self._storage, [self._storage.get_trial(trial.row)]):
                return None
            return self._retry(trial, reason, max_retries=max_retries, free=False)

    def retry(self, trial: Trial, reason: str, *, max_retries: int, free: bool = False) -> str:
        """Hand an interrupted attempt over to whoever claims next.

        Args:
            trial: a trial whose latest attempt is running.
            reason: why the attempt ended, for people.
            max_retries: attempts that may be lost before the trial is failed.
            free: the interruption was wanted (a stop, a hand-over) and does not count.

        Returns:
            Why the trial is failed now; empty where it goes on.
        """
        with self.lock():
            return self._retry(trial, reason, max_retries=max_retries, free=free)

    def _retry(self, trial: Trial, reason: str, *, max_retries: int, free: bool) -> str:
        row = self._storage.get_trial(trial.row)
        if row.state != TrialState.RUNNING:
            return ""  # somebody else took it up already
        retries = trial.retries + (not free)
        goes_on = retries <= max_retries
        kind = "infrastructure" if goes_on else "error"
        text = reason if goes_on else f"{reason}, {retries} times; see study.max_retries"
        end = {"kind": kind, "reason": text}
        try:
            if goes_on:
                successor = next_attempt(row, trial, retries)
                hand_over(self._storage, self._study._study_id, trial.row, successor, end=end)
            else:
                end_row(self._storage, trial.row, TrialState.FAIL, end=end)
        except UpdateFinishedTrialError:
            return ""  # its worker has told its end meanwhile
        return "" if goes_on else text

    # Who is alive

    def beat(self, rows: Sequence[int]) -> None:
        """Say that the attempts of these rows are alive."""
        for row in rows:
            self._storage.record_heartbeat(row)

    def taken_away(self, rows: Sequence[int]) -> list[int]:
        """Those of these rows whose attempt was ended by somebody else, or by its own worker."""
        return [row for row in rows if self._storage.get_trial(row).state.is_finished()]

    def stale(self) -> list[Trial]:
        """Running trials whose worker is dead or silent for the grace time.

        Silence counts while it is asked for all the time: whoever comes back first after an outage
        of the database, or from a suspension, finds all others silent.
        """
        now = time.time()
        if self._asked is not None and not 0 <= now - self._asked < GRACE_S / 2:
            self._hears_from = time.monotonic() + GRACE_S
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        hears = time.monotonic() >= self._hears_from
        found = find_stale(self._storage, running, by_silence=hears)
        self._asked = now
        return [trial_of(row) for row in found]


def _count_begun(trials: Sequence[Trial]) -> int:
    return sum(trial.state != "waiting" for trial in trials)

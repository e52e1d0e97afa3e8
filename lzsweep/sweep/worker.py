"""A worker: pulls trials from the study and trains them, one in each of its slots.

It runs as a Hydra job, on this machine or on a node of a cluster. It owns its loop (claim, train,
tell), beats for its trials, takes up trials whose worker died, and stays until nothing of the
study is running or waiting, because else nobody would notice the last node die.
"""

from __future__ import annotations

import logging
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lzsweep.config import ARTIFACTS, WEIGHTS_FILE, make_loader, to_yaml
from lzsweep.errors import LzsweepError
from lzsweep.sweep.attempt import Attempt, Attempts
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.deciders import make_pruner, make_sampler
from lzsweep.sweep.finish import finish_study
from lzsweep.sweep.forkserver import await_forkserver, start_forkserver, uses_compiler
from lzsweep.sweep.lesson import find_lessons, teach
from lzsweep.sweep.page import prepare_report
from lzsweep.sweep.process import this_host
from lzsweep.sweep.publisher import PUBLISH_S, Publisher
from lzsweep.sweep.record import Claim, Ending, SeedResult, Trial
from lzsweep.sweep.rows import OpenRows, TrialLost
from lzsweep.sweep.runs import STATUS, code_tags, ending_tags, run_name, run_tags
from lzsweep.sweep.sanity import Sanity, find_strangers
from lzsweep.sweep.seeds import (
    begun_seeds,
    best_seed,
    cut_short,
    lend_best,
    log_of,
    open_seeds,
    seed_folder,
    sum_up,
    write_means,
)
from lzsweep.sweep.signals import Signals
from lzsweep.sweep.slots import Slot, devices_per_trial, find_slots
from lzsweep.sweep.slurm import this_job
from lzsweep.sweep.storage import DATABASE_ERRORS, first_line, patiently
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.study import Study
from lzsweep.sweep.syntax import fill
from lzsweep.sweep.trial import End, Report, Spec, Word, reason_of
from lzsweep.sweep.walltime import Walltime
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.recorder import Recorder

BEGIN_S = 0.5
"""Time in which a slot's next trial begins; the network of the last one can wait so long."""
LOOK_S = (0.5, 1.0)
"""Time between two looks of an idle slot at whether anything has changed, drawn anew each time."""
CLAIM_S = (4.0, 8.0)
"""Time after which an idle slot tries to claim whatever it has seen: the budget may have grown."""
HURRY_S = 10.0
"""Time for networks that are still to be published when the worker ends before its study."""
WATCH_S = 5.0
"""Time between two heartbeats, and between two looks for lost workers."""

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.IGNORECASE)
_logger = logging.getLogger(__name__)


def join(cfg: DictConfig) -> None:
    """Be a worker of the study `cfg.worker.join` until it is done or stopped."""
    start_forkserver(compiles=uses_compiler(cfg))
    study = open_study(cfg.study.storage, cfg.worker.join)
    job = this_job()
    if job and job.array not in study.jobs():  # who submitted it died before it could say so
        patiently(study.add_jobs, [job.array])
    hydra = HydraConfig.get()
    # A seeded sampler must not propose the same points in every worker and after every restart.
    offset = 7919 * hydra.job.num + len(study.trials())
    sampler, pruner = (
        make_sampler(hydra.sweeper.sampler, offset),
        make_pruner(hydra.sweeper.pruner),
    )
    lessons: list[Any] = []
    if teacher := study.teacher():
        url, record = cfg.study.storage, study.record
        lessons, _ = find_lessons(url, *teacher, pupil=study.name, record=record)
        teach(sampler, lessons, study.space)
    study.set_deciders(sampler, pruner, lessons)
    worker = Worker(study, cfg)
    await_forkserver()
    worker.run()


class Worker:
    """Trains trials in one thread a slot; the main thread beats, watches and takes signals."""

    def __init__(self, study: Study, cfg: DictConfig) -> None:
        self._study = study
        self._record = study.record
        self._cfg = cfg
        self._name = f"{this_host()}:{os.getpid()}"
        self._folder = Path(self._record.folder)
        loader = make_loader(self._record.conf)
        self._composer = Composer(loader, self._record.fixed, self._record.config_name)
        self._space = study.space
        # Hydra's files are read for the first trial while the forkserver gets ready.
        first = self._composer(self._space.to_overrides(fill(self._space, {})))
        worker, n_devices = cfg.worker, devices_per_trial(cfg.trainer)
        self._slots = find_slots(str(worker.slots), worker.slots_per_device, n_devices)
        limits = {"timeout_s": worker.trial_timeout, "memory_gb": worker.trial_memory_gb}
        self._attempts = {slot.number: Attempts(**limits) for slot in self._slots}
        self._recorder = Recorder(**cfg.tracking) if self._record.is_recorded else None
        self._lock = threading.Lock()
        self._running: dict[int, Attempt] = {}  # row -> its attempt
        self._unheard: set[int] = set()  # slots whose last claim got no answer
        self._stopping = threading.Event()
        strangers = find_strangers(first, self._space, self._composer) if worker.sanity else []
        self._sanity = Sanity(study, strangers, self._stopping)
        self._fault: Exception | None = None
        self._undertakers: list[threading.Thread] = []
        self._publisher = Publisher(self._keep_network)
        self._walltime = Walltime(study, HydraConfig.get().launcher.get("signal_delay_s") or 0)
        self._code = code_tags(self._record)

    def run(self) -> None:
        """Work until the study is done or stopped, or a signal says so.

        Raises:
            LzsweepError: the work itself failed, or the job's time limit is too short for any.
        """
        threads = [
            threading.Thread(
                target=self._guard, args=(self._fill, slot), name=f"slot {slot.number}"
            )
            for slot in self._slots
        ]
        signals = Signals(self._stopping)
        with signals:
            for thread in threads:
                thread.start()
            while alive := [thread for thread in threads if thread.is_alive()]:
                self._guard(self._watch)
                if self._walltime.is_over():
                    self._interrupt()
                for thread in alive:
                    thread.join(WATCH_S / len(alive))
            for thread in self._undertakers:
                thread.join()
            is_over = False
            try:
                if is_over := self._is_over():
                    ended = [t for t in patiently(self._study.trials) if t.is_finished]
                    self._publisher.add_missing(self._folder / str(t.number) for t in ended)
                    finish_study(self._study, self._cfg.tracking.uri)
            finally:
                self._publisher.close(PUBLISH_S if is_over else HURRY_S)
                if self._recorder:
                    self._recorder.close(self._walltime.delivery_s())
            if self._fault:
                raise LzsweepError(
                    f"worker {self._name} ended: {reason_of(self._fault)}; its trials went back to"
                    f" study {self._study.name}, and the same command goes on with it"
                ) from self._fault
            if not is_over:
                self._walltime.leave(signals)

    def _guard(self, work: Callable[..., None], *args: Any) -> None:
        """Do a part of the work; where it fails, the others stop and the worker fails with it."""
        try:
            work(*args)
        except Exception as error:
            _logger.exception("this worker ends, because its work failed")
            with self._lock:
                self._fault = self._fault or error
            self._stopping.set()

    def _interrupt(self) -> None:
        """End what a stop did not end in time, in the middle of a validation for instance."""
        self._stopping.set()
        self._publisher.hurry(HURRY_S)
        with self._lock:
            running = list(self._running.values())
        for attempt in running:
            attempt.interrupt("the time of its job was over")

    def _is_over(self) -> bool:
        if self._fault:
            return False  # the database may be what failed
        return patiently(self._study.is_done) or bool(patiently(self._study.stopped))

    def _fill(self, slot: Slot) -> None:
        """One slot's life: claim and train until there is nothing left to wait for."""
        attempts = self._attempts[slot.number]
        try:
            self._sanity.settle(attempts, slot)
            while not self._stopping.is_set() and patiently(self._walltime.has_room):
                claim = patiently(self._claim, slot)
                if claim is not None:
                    is_last = patiently(self._study.has_begun_all)
                    attempts.goes_on = not is_last
                    if is_last:
                        prepare_report()  # beside the last trial
                    self._train_or_tell(claim, slot)
                elif not self._await_claimable():
                    return
        finally:
            attempts.close()

    def _await_claimable(self) -> bool:
        """Wait, without the study's lock, for something to claim; False if nothing will come."""
        while not self._stopping.is_set():
            seen = patiently(self._study.open_rows)
            if patiently(self._study.may_claim):
                return True
            if patiently(self._study.stopped) or patiently(self._study.is_done):
                return False
            self._idle(seen)
        return False

    def _idle(self, seen: OpenRows) -> None:
        """Wait until the study's open rows are others than those seen, or for some seconds."""
        give_up = time.monotonic() + random.uniform(*CLAIM_S)
        while time.monotonic() < give_up and not self._stopping.wait(random.uniform(*LOOK_S)):
            if patiently(self._study.open_rows) != seen:
                return

    def _claim(self, slot: Slot) -> Claim | None:
        name = f"{self._name}/{slot.number}"
        claim = self._study.unheard(name) if slot.number in self._unheard else None
        self._unheard.add(slot.number)
        claim = claim or self._study.claim(name, slot.share, slot.threads)
        self._unheard.remove(slot.number)
        return claim

    def _train_or_tell(self, claim: Claim, slot: Slot) -> None:
        """Train; whatever stands in the way is this trial's failure, not the worker's."""
        try:
            self._train(claim, slot)
        except TrialLost as error:
            _logger.warning("%s; its process here was ended", error)
        except DATABASE_ERRORS:
            raise
        except Exception as error:
            _logger.exception("trial %d could not be trained", claim.trial.number)
            folder = self._folder / str(claim.trial.number)
            with suppress(TrialLost):
                self._finish(claim, End("error", reason_of(error)), folder)

    def _train(self, claim: Claim, slot: Slot) -> None:
        trial = claim.trial
        config = self._compose(trial)
        folder = self._folder / str(trial.number)
        self._begin(folder, trial, config)
        if self._record.seeds == 1:
            end = self._follow(claim, slot, folder, config)
        else:
            end = self._follow_seeds(claim, slot, folder, config["seed"])
        self._finish(claim, end, folder)

    def _begin(
        self, folder: Path, trial: Trial, config: dict[str, Any], seed: int | None = None
    ) -> None:
        """Make the folder and begin the run of a trial, or of one of its seeds below it."""
        folder.mkdir(parents=True, exist_ok=True)
        if not self._recorder:
            return
        tags = run_tags(self._study.name, trial, self._name, folder) | self._code
        self._recorder.start(
            folder,
            name=run_name(trial, seed),
            params=trial.params if seed is None else {**trial.params, "seed": seed},
            tags=tags if seed is None else {**tags, "lzsweep.seed": str(seed)},
            config=to_yaml(config),
            parent_folder=folder.parent,
        )

    def _compose(self, trial: Trial, seed: int | None = None) -> dict[str, Any]:
        last = [] if seed is None else [f"seed={seed}"]
        return self._composer([*self._space.to_overrides(trial.params), *last])

    def _follow_seeds(self, claim: Claim, slot: Slot, folder: Path, first: int) -> End:
        """Train a trial with one seed after the other; those complete are not trained again."""
        trial = claim.trial
        done = {result.seed: result for result in trial.seeds}
        seeds = range(first, first + self._record.seeds)
        for seed in (s for s in seeds if s not in done):
            if self._stopping.is_set():
                return End("stopped")
            own = seed_folder(folder, seed)
            config = self._compose(trial, seed)
            self._begin(own, trial, config, seed)
            end = self._follow(claim, slot, own, config, seed)
            if end.kind not in ("stopped", "killed"):
                self._publisher.add(own).result()  # the trial may want to lend it
            if self._recorder:
                tags = ending_tags(end.kind, end.reason)
                self._recorder.end(own, STATUS[end.kind], tags=tags)
            if end.kind != "complete" or end.values is None:
                end = cut_short(end, seed, list(done.values()))
                if end.kind not in ("stopped", "killed"):
                    self._conclude(folder, done, begun=[*done, seed], last={})
                return end
            done[seed] = SeedResult(seed, end.values, end.metrics or {}, end.train_s)
            patiently(self._study.keep_seed, claim, done[seed])
        end = sum_up([done[seed] for seed in seeds], self._record.metrics)
        last = {k: v for k, v in (end.metrics or {}).items() if k.endswith("_sd")}
        self._conclude(folder, done, begun=seeds, last=last)
        return end

    def _conclude(
        self,
        folder: Path,
        done: Mapping[int, SeedResult],
        begun: Sequence[int],
        last: Mapping[str, float],
    ) -> None:
        """Give a trial's folder and run what its seeds have found."""
        best = best_seed(done, self._record)
        lend_best(folder, seed_folder(folder, begun[-1] if best is None else best))
        if self._recorder:
            write_means(folder, [seed_folder(folder, seed) for seed in begun], last)

    def _follow(
        self,
        claim: Claim,
        slot: Slot,
        folder: Path,
        config: dict[str, Any],
        seed: int | None = None,
    ) -> End:
        record = self._record

        def answer(report: Report) -> Word:
            self._walltime.progress()
            is_bad = patiently(self._study.report, claim, report.rung, *report.values, seed=seed)
            return "prune" if is_bad else "go on"

        spec = Spec(
            config,
            str(folder),
            record.metrics,
            slot.device,
            slot.threads,
            record.resource,
            record.rung,
        )
        attempts = self._attempts[slot.number]
        attempt = attempts.begin(spec)
        if self._recorder:
            devices = None if slot.device is None else slot.device.split(",")
            self._recorder.watch(folder, pid=attempt.pid, devices=devices)
        with self._lock:
            self._running[claim.row] = attempt
        try:
            return attempt.follow(answer, self._stopping.is_set, attempts.prepare)
        finally:
            if self._recorder:
                self._recorder.unwatch(folder)
            with self._lock:
                del self._running[claim.row]

    def _finish(self, claim: Claim, end: End, folder: Path) -> None:
        """Tell the run, then the study, how the attempt ended.

        In this order: whoever dies in between leaves a trial that is retried, and its next
        attempt ends the run once more; the other way round the run would stay open for ever.
        """
        if end.kind == "stopped" or end.kind == "killed":  # this form narrows the type
            reason = end.reason or "its worker was stopped"
            if end.kind == "stopped":
                self._walltime.progress()
            # Before another worker can take it up; where it goes on at once here, not at all.
            if self._recorder and self._stopping.is_set():
                self._recorder.end(folder, "KILLED", tags={"lzsweep.reason": reason})
            reason = self._hand_over(claim.trial, reason, free=end.kind == "stopped")
            if not reason:
                return
            if self._record.seeds > 1:
                self._rescue(claim.trial.number, folder)
            state: Ending = "error"
        else:
            state, reason = end.kind, end.reason
        if self._recorder:
            for seed in open_seeds(folder):
                self._recorder.end(seed, "FAILED")
            self._recorder.end(
                folder,
                "FAILED" if state in ("error", "infeasible") else "FINISHED",
                tags=ending_tags(state, reason),
                # The best of a pruned trial is published too, but nobody goes on from it.
                artifacts=ARTIFACTS if state == "complete" else {WEIGHTS_FILE: ""},
            )
        if end.kind not in ("stopped", "killed"):
            patiently(
                self._study.tell,
                claim,
                state,
                end.values,
                reason=reason,
                metrics=end.metrics,
                train_s=end.train_s,
                run_id=run_id_of(folder),
            )
        if self._record.seeds == 1:
            self._publisher.add(folder, after_s=BEGIN_S)
        if state == "error":
            self._stop_after_same_errors()

    def _rescue(self, number: int, folder: Path) -> None:
        """Write the network, for the engine, that a trial had found when it was lost for good."""
        if self._record.seeds == 1:
            self._publisher.add(folder).result()
            return
        for own in open_seeds(folder):
            self._publisher.add(own).result()
        if begun := begun_seeds(folder):
            trial = patiently(lambda: self._study.trial(number))
            self._conclude(folder, {r.seed: r for r in trial.seeds}, begun, last={})

    def _keep_network(self, folder: Path) -> None:
        if self._recorder:
            self._recorder.keep(folder, WEIGHTS_FILE)

    def _hand_over(self, trial: Trial, reason: str, *, free: bool) -> str:
        return patiently(
            self._study.retry,
            trial,
            reason,
            max_retries=self._cfg.study.max_retries,
            free=free,
        )

    def _stop_after_same_errors(self) -> None:
        n = self._cfg.study.max_same_errors
        ended = [t for t in patiently(self._study.trials) if t.is_finished]
        last = sorted(ended, key=lambda t: t.finished or datetime.min)[-n:]
        # Two errors that differ in a number, such as that of the trial's folder, are the same.
        kinds = {_NUMBER.sub("#", t.reason) for t in last}
        if len(last) == n and len(kinds) == 1 and all(t.ending == "error" for t in last):
            log = log_of(self._folder / str(last[-1].number))
            patiently(
                self._study.stop,
                f"the same error {n} times running: {last[-1].reason}; see {log}",
            )

    def _watch(self) -> None:
        """Beat for the trials here, end those taken away, take up those whose worker is gone."""
        with self._lock:
            running = dict(self._running)
        try:
            self._study.beat(list(running))
            for row in self._study.taken_away(list(running)):
                running[row].kill()  # else its successor waits for the folder
            if (reason := self._study.stopped()) and not self._stopping.is_set():
                self._stopping.set()
                print(f"stopped {reason}: trials write a checkpoint and go back", file=sys.stderr)
            for trial in self._study.stale():
                self._take_up(trial)
        except DATABASE_ERRORS as error:
            _logger.warning("the study database does not answer: %s", first_line(error))

    def _take_up(self, trial: Trial) -> None:
        reason = f"worker {trial.worker or 'unknown'} was lost"
        failure = self._study.take_up(trial, reason, max_retries=self._cfg.study.max_retries)
        if failure is None:
            return
        if not failure:
            _logger.warning("trial %d goes on: its %s", trial.number, reason)
        elif self._recorder:
            # Aside: its network takes seconds, in which nobody here would be heard to be alive.
            thread = threading.Thread(
                target=self._guard,
                args=(self._bury, trial, failure),
                name=f"end of {trial.number}",
            )
            thread.start()
            self._undertakers.append(thread)

    def _bury(self, trial: Trial, reason: str) -> None:
        """Publish the network of a trial that others lost for good, and end its runs."""
        assert self._recorder
        folder = self._folder / str(trial.number)
        self._rescue(trial.number, folder)
        tags = ending_tags("error", reason)
        for run in (*open_seeds(folder), folder):
            self._recorder.end(run, "FAILED", tags=tags, artifacts={WEIGHTS_FILE: ""})

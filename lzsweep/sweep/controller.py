"""The controller of a sweep: refuses what is wrong, opens the study, starts the workers.

It may be killed at any time: the workers finish, and the same command joins the study again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lzsweep.config import NEVER_LOGGED, make_loader, objectives, sources
from lzsweep.errors import ConfigError, LzsweepError, UserError
from lzsweep.go.board import N_MOVES
from lzsweep.sweep.budget import Budget, parse_time
from lzsweep.sweep.checks import check_sweep
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.finish import finish_study
from lzsweep.sweep.folder import check_frozen, freeze, frozen, name_problems, take_folder
from lzsweep.sweep.lesson import find_lessons
from lzsweep.sweep.page import PAGE_NAME, REPORT_NAME
from lzsweep.sweep.plugin import is_basic
from lzsweep.sweep.points import read_points
from lzsweep.sweep.probe import probe
from lzsweep.sweep.progress import show_progress
from lzsweep.sweep.record import Record, Trial
from lzsweep.sweep.report import (
    count_states,
    make_console,
    overhead_s,
    ranked,
    say_again,
    say_failure,
    show_params,
    show_seeds,
    show_values,
    write_best,
)
from lzsweep.sweep.seeds import log_of
from lzsweep.sweep.signals import left_to_workers
from lzsweep.sweep.slurm import Workers, is_slurm, told, wait
from lzsweep.sweep.source import settle_space
from lzsweep.sweep.space import Space, Value
from lzsweep.sweep.storage import absolute_url, patiently
from lzsweep.sweep.studies import create_study, find_study
from lzsweep.sweep.study import Study
from lzsweep.sweep.syntax import fill, parse_space, quoted
from lzsweep.tracking.client import redact, resolve_uri
from lzsweep.tracking.recorder import has_recorder
from lzsweep.tracking.runs import (
    begin_parent,
    changed_code,
    close_parent,
    code_version,
)
from lzsweep.train.run import data_version

N_TRIALS = 20
"""The budget where nothing says otherwise and the space is no grid."""
MEANING = ("resource", "rung", "seeds")
"""Keys of `study` that say what its trials' values and curves are."""

_logger = logging.getLogger(__name__)


class Controller:
    """One `lzsweep -m`."""

    def __init__(
        self, config: DictConfig, hydra_context: HydraContext, task_function: TaskFunction
    ) -> None:
        self._config = config
        self._context = hydra_context
        self._task = task_function
        self._console = make_console()
        self._is_basic = is_basic(config)
        self._is_slurm = is_slurm(str(config.hydra.launcher._target_))

    def run(self, arguments: Sequence[str]) -> None:
        """Check, open or join the study, launch the workers, show how it goes, sum up.

        Raises:
            ConfigError: the sweep is wrong; nothing was started.
            UserError: a database, a server, the data or another study stands in the way.
            LzsweepError: the study did not come to its end.
        """
        cfg = self._config
        loader = self._context.config_loader
        live = Composer(make_loader(sources(loader)))
        with self._console.status("checking the configuration, the data and the servers"):
            space, problems = parse_space(
                arguments,
                OmegaConf.to_container(cfg.study.space),  # type: ignore[arg-type]  # a mapping
                loader,
                lambda overrides: live.parts(overrides).spaces,
            )
            space, missing = settle_space(space, cfg)
            points, faults = read_points(list(cfg.study.enqueue), space, live)
            problems = [*name_problems(cfg.study.name), *problems, *missing, *faults]
            configs = check_sweep(cfg, space, live, is_basic=self._is_basic, problems=problems)
            if cfg.worker.dry_run:
                print("\n".join(self._workers(self._context, cfg).scripts(cfg.worker.count)))
                return
            study = self._open(cfg, space, configs)
            self._queue(study, points)
        fault: BaseException | None = None
        if study.is_done():
            n_finished = sum(t.is_finished for t in study.trials())
            spent = study.spent()
            why = (
                f"{spent}; change that, or lift it by =null," if spent else "raise study.n_trials"
            )
            self._say(
                f"study {study.name} is complete: {n_finished} of {study.n_trials} trials;"
                f" {why} for more, or choose another study.name to start anew"
            )
        else:
            fault = self._launch(study, space)
            if self._is_slurm and not cfg.worker.wait:
                return
        self._sum_up(study, fault)

    def _open(self, cfg: DictConfig, space: Space, configs: Sequence[Mapping[str, Any]]) -> Study:
        base = configs[0]
        settings = _settings(space, base, cfg.study)
        fingerprint = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()
        choice = cfg.hydra.runtime.choices.get("sweeps") or "sweep"
        name = cfg.study.name or f"{choice}-{fingerprint[:8]}"
        known = find_study(cfg.study.storage, name)
        folder = Path(known.record.folder) if known else self._folder(name)
        if known:
            check_frozen(known.record.conf)
        if self._is_slurm and cfg.worker.probe and (problems := probe(cfg, folder)):
            raise ConfigError(problems)
        live = sources(self._context.config_loader)
        record = self._record(space, configs, settings, folder)
        until = self._learn(name, record, known)

        def prepare() -> None:
            take_folder(folder, live)
            freeze(live, folder)

        study, is_new = create_study(
            cfg.study.storage,
            name,
            record,
            _budget(cfg.study, space),
            given=_given(cfg.study, cfg.hydra.overrides.task),
            prepare=prepare,
        )
        _warn_of_other_code(study)
        _warn_of_other_data(study, record.data)
        if until is not None:
            study.set_teacher(cfg.study.warm_start, until)
        if study.record.is_recorded and not study.is_done():
            begin_parent(
                study.record.folder,
                experiment=cfg.tracking.experiment,
                study=name,
                tags=code_version(),
                description=_question(study),
            )
        self._say(
            f"{'new study' if is_new else 'joined study'} {name}: "
            f"{_question(study)}; {study.n_trials} trials,"
            f" folder {_shown(Path(study.record.folder))}"
        )
        return study

    def _record(
        self,
        space: Space,
        configs: Sequence[Mapping[str, Any]],
        settings: Mapping[str, str],
        folder: Path,
    ) -> Record:
        """What this command sweeps."""
        cfg = self._config
        metrics, directions = objectives(configs[0]["objective"])
        return Record(
            space=space.texts,
            tree=space.to_json(),
            fixed=space.fixed,
            settings=settings,
            metrics=metrics,
            directions=directions,
            folder=str(folder),
            conf=frozen(sources(self._context.config_loader), folder),
            config_name=cfg.hydra.job.config_name,
            tracking_uri=redact(resolve_uri(cfg.tracking.uri)),
            is_recorded=has_recorder(cfg.logger),
            command=(
                *_config_dir(cfg),
                *(word for word in cfg.hydra.overrides.hydra if word != "hydra.mode=MULTIRUN"),
                *cfg.hydra.overrides.task,
            ),
            cwd=str(Path.cwd()),
            code=code_version(),
            created=time.time(),
            resource=cfg.study.resource,
            rung=float(cfg.study.rung or 1.0),
            seeds=cfg.study.seeds,
            data={k: v for c in configs for k, v in data_version(c["data"]).items()},
        )

    def _learn(self, name: str, record: Record, known: Study | None) -> datetime | None:
        """Until when the study of `study.warm_start` teaches: now, or as was said before."""
        teacher = self._config.study.warm_start
        if teacher is None:
            return None
        before = known.teacher() if known else None
        until = before[1] if before and before[0] == teacher else datetime.now()
        url = self._config.study.storage
        lessons, n_skipped = find_lessons(url, teacher, until, pupil=name, record=record)
        self._say(
            f"the sampler learns from {len(lessons)} trials of {teacher};"
            f" {n_skipped} do not fit this search space"
        )
        return until

    def _queue(self, study: Study, points: Sequence[Mapping[str, Value]]) -> None:
        """Queue the known-good points, then the grid if there is one."""
        space, n = study.space, study.n_trials
        with study.lock():
            if space.is_grid:  # each of its points is trained, so nothing stays open
                first = [fill(space, point) for point in points]
                rest = (p for p in space.grid() if p not in first)
                points = [*first, *islice(rest, max(0, n - len(first)))]
            study.enqueue(points)

    def _folder(self, name: str) -> Path:
        given = any(o.startswith("hydra.sweep.dir=") for o in self._config.hydra.overrides.hydra)
        return Path(self._config.hydra.sweep.dir if given else f"multirun/{name}").absolute()

    def _launch(self, study: Study, space: Space) -> BaseException | None:
        """Start the workers and wait for them.

        Returns:
            Why they did not end the study, where they or the launcher say so.
        """
        cfg = self._config
        subdir = f"workers/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-${{hydra.job.num}}"
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            cfg.hydra.sweep.dir = study.record.folder
            cfg.hydra.sweep.subdir = subdir
        # A job composes its own configuration, when it starts; from the copy, not the live files.
        frozen = HydraContext(make_loader(study.record.conf), self._context.callbacks)
        job = [
            *space.fixed,
            f"worker.join={quoted(study.name)}",
            f"hydra.sweep.dir={quoted(study.record.folder)}",
            f"hydra.sweep.subdir={quoted(subdir)}",
        ]
        # Where a path is meant it must hold in the job's folder as well; nothing else is copied,
        # because an address may hold a password.
        places = {
            "study.storage": absolute_url(cfg.study.storage),
            "tracking.uri": resolve_uri(cfg.tracking.uri),
        }
        job += [f"{key}={quoted(url)}" for key, url in places.items() if url.startswith("sqlite")]
        jobs = [job] * cfg.worker.count
        if self._is_slurm:
            self._submit(study, self._workers(frozen, cfg), jobs)
            return None
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=frozen, task_function=self._task, config=cfg
        )
        return self._stay(study, partial(launcher.launch, jobs, initial_job_idx=0))

    def _stay(
        self, study: Study, launch: Callable[[], Sequence[JobReturn]]
    ) -> BaseException | None:
        """Show how a study goes while its workers are here; as `_launch`."""
        n_begun = _count_begun(study)
        in_reach = nullcontext() if self._is_basic else left_to_workers()
        with show_progress(study, self._console), in_reach:
            try:
                returns = launch()
            except KeyboardInterrupt:
                return LzsweepError("stopped by Ctrl-C; the same command goes on with it")
            except Exception as error:
                # Launchers give up at the first lost job; the study knows how it really went.
                said = told(str(error)) or repr(error)
                if _count_begun(study) == n_begun:
                    return LzsweepError(
                        f"the launcher must start the workers, but no trial began: {said};"
                        f" correct hydra.launcher.*, or see the logs in {study.record.folder}"
                    )
                _logger.warning("the launcher says: %s", said)
                return None
        faults = [r._return_value for r in returns]
        return next((fault for fault in faults if isinstance(fault, BaseException)), None)

    def _workers(self, context: HydraContext, cfg: DictConfig) -> Workers:
        params = {k: v for k, v in cfg.hydra.launcher.items() if k != "_target_"}
        workers = Workers(**params)
        workers.setup(hydra_context=context, task_function=self._task, config=cfg)
        return workers

    def _submit(self, study: Study, workers: Workers, jobs: list[list[str]]) -> None:
        ids: list[str] = []
        try:
            for job in workers.submit(jobs):
                # At once, so that `stop` finds it if a later one is refused.
                patiently(study.add_jobs, [job])
                ids.append(job)
        except LzsweepError:
            if ids:
                self._say(f"job {', '.join(ids)} goes on; stop it: lzsweep stop {study.name}")
            elif study.record.is_recorded and all(t.state != "running" for t in study.trials()):
                close_parent(study.record.folder, self._config.tracking.uri, "KILLED")
            raise
        self._say(
            f"submitted {len(jobs)} workers of {study.name}: job {', '.join(ids)};"
            f" they log to {_shown(Path(study.record.folder) / '.submitit')}"
        )
        self._say(
            f"watch: lzsweep watch {study.name}; stop: lzsweep stop {study.name};"
            f" go on: lzsweep resume {study.name}"
        )
        if not self._config.worker.wait:
            if study.record.is_recorded:
                self._say(_how_to_look(study))
            return
        with show_progress(study, self._console):
            wait(ids, lambda: patiently(study.is_done) or bool(patiently(study.stopped)))

    def _sum_up(self, study: Study, fault: BaseException | None) -> None:
        trials = patiently(study.trials)
        done, stopped = study.is_done(trials), study.stopped()
        self._show_counts(study, trials)
        self._show_best(study)
        if study.record.is_recorded:
            self._say(_how_to_look(study))
        if done or stopped:
            for label, link in finish_study(study, self._config.tracking.uri).items():
                self._say(f"{label}: {link}")
            self._say(f"report: {_shown(Path(study.record.folder) / REPORT_NAME / PAGE_NAME)}")
        if done and (spent := study.spent(trials)):
            self._say(f"the study ended early: {spent}")
        if stopped:
            is_input = stopped.startswith(NEVER_LOGGED)  # the command could not know
            error = UserError if is_input else LzsweepError
            raise error(f"study {study.name} was stopped: {stopped}")
        if not done:
            if study.record.is_recorded and not any(t.state == "running" for t in trials):
                close_parent(study.record.folder, self._config.tracking.uri, "KILLED")
            raise fault or LzsweepError(
                f"study {study.name} is not complete; the same command goes on with it"
            )
        if not any(t.state == "complete" for t in trials):
            raise LzsweepError(f"no trial of study {study.name} completed")

    def _show_counts(self, study: Study, trials: Sequence[Trial]) -> None:
        for trial in trials:
            if trial.state == "failed":
                log = _shown(log_of(Path(study.record.folder) / str(trial.number)))
                self._say(say_failure(trial, log))
        finished = [t for t in trials if t.is_finished]
        states = ", ".join(f"{n} {state}" for state, n in count_states(finished).items() if n)
        extra = overhead_s(trials)
        self._say(
            f"{study.name}: {len(finished)} of {study.n_trials} trials finished"
            f" ({states or 'none'})"
            + (f", {extra:.2f} s overhead a trial" if extra is not None else "")
        )

    def _show_best(self, study: Study) -> None:
        record = study.record
        word = "best" if len(record.metrics) == 1 else "front"
        for trial in ranked(record, study.best()):
            words = (
                f"{word}: #{trial.number}",
                show_values(record.metrics, trial),
                show_params(trial.params),
                show_seeds(trial),
            )
            self._say(" ".join(filter(None, words)))
            if top1 := trial.metrics.get("val/policy_top1"):
                chance = top1 * N_MOVES
                self._say(
                    f"      val/policy_top1={top1:.4f}, {chance:.0f} times chance (1/{N_MOVES})"
                )
        if command := write_best(study):
            self._say(f"{say_again(record)}: {command}")

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


def _budget(study: DictConfig, space: Space) -> Budget:
    size = space.size() if space.is_grid else None
    n_trials = study.n_trials or size or N_TRIALS
    return Budget(
        n_trials=n_trials if size is None else min(n_trials, size),
        max_time_s=None if study.max_time is None else parse_time(study.max_time),
        max_device_hours=study.max_device_hours,
        target=study.target,
        patience=study.patience,
    )


def _given(study: DictConfig, typed: Sequence[str]) -> list[str]:
    """Fields of the budget that this command sets, or lifts by `=null`."""
    keys = ("n_trials", "max_time", "max_device_hours", "target", "patience")
    words = {word.partition("=")[0] for word in typed}
    given = [key for key in keys if study[key] is not None or f"study.{key}" in words]
    return [key.replace("max_time", "max_time_s") for key in given]


def _config_dir(cfg: DictConfig) -> list[str]:
    """The option `--config-dir` as it was typed, for the folder may be another one next time."""
    sources = cfg.hydra.runtime.config_sources
    typed = next((s.path for s in sources if s.provider == "command-line"), None)
    return [] if typed is None else ["--config-dir", typed]


def _settings(space: Space, base: Mapping[str, Any], study: DictConfig) -> dict[str, str]:
    """What is swept and what is fixed, by key; where it runs and is recorded does not count.

    Nor does what a study may spend; but what the values of its trials mean does.
    """
    settings = {f"{p.name} (searched)": p.text for p in space.parameters}
    settings |= {f"study.{key}": str(study[key]) for key in MEANING if study[key] is not None}
    todo: list[tuple[str, Any]] = [
        (key, value) for key, value in base.items() if key not in ("study", "worker", "tracking")
    ]
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{key}.{name}", child) for name, child in value.items()]
        elif key != "data.cache_dir":
            settings[key] = json.dumps(value, default=str)
    return dict(sorted(settings.items()))


def _warn_of_other_code(study: Study) -> None:
    if changed := changed_code(study.record.code):
        _logger.warning("the study began with %s, this is %s", *changed)


def _warn_of_other_data(study: Study, now: Mapping[str, str]) -> None:
    before = study.record.data
    if any(before.get(name) != version for name, version in now.items()):
        _logger.warning("the games are not those with which study %s began", study.name)


def _question(study: Study) -> str:
    record = study.record
    space = " ".join(f"{k}={v}" for k, v in record.space.items()) or "one point"
    wanted = ", ".join(f"{d} {m}" for d, m in zip(record.directions, record.metrics, strict=True))
    return f"{wanted} over {space}"


def _count_begun(study: Study) -> int:
    return sum(attempt.worker is not None for attempt in study.attempts())


def _how_to_look(study: Study) -> str:
    uri = study.record.tracking_uri
    if uri.startswith("sqlite"):
        return f"look at the runs: lzsweep serve --database {uri}"
    return f"look at the runs: {uri} (experiment, then the row {study.name})"


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

"""What is wrong with a sweep, all of it, before any trial starts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, get_args

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lzsweep.config import METRICS, WEIGHTED, is_shipped, objectives
from lzsweep.errors import ConfigError, LzsweepError, nearest
from lzsweep.explain import explain, target_problems
from lzsweep.sweep.budget import parse_time
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.deciders import make_pruner, make_sampler
from lzsweep.sweep.lesson import LEARNERS, find_teacher
from lzsweep.sweep.probe import gpus_asked, limit_problems
from lzsweep.sweep.slots import devices_per_trial, find_slots
from lzsweep.sweep.slurm import is_slurm
from lzsweep.sweep.space import Space
from lzsweep.sweep.standing import pruner_problem
from lzsweep.sweep.storage import absolute_url, first_line, network_mount
from lzsweep.sweep.syntax import probe_points
from lzsweep.sweep.trial import Resource
from lzsweep.tracking.client import resolve_uri, sqlite_file
from lzsweep.tracking.recorder import has_recorder
from lzsweep.tracking.runs import check_server
from lzsweep.train.devices import check_gpus
from lzsweep.train.run import prepare_data
from lzsweep.train.source import check_init_from

GRID_LIMIT = 10_000
"""Points of a grid that nobody limited, more of which are a mistake."""
LEAST = {
    "study.n_trials": 1,
    "study.patience": 1,
    "study.max_retries": 0,
    "study.max_same_errors": 1,
    "study.seeds": 1,
    "worker.count": 1,
}
"""The least that makes sense of what is counted."""
LOCAL_LAUNCHERS = ("BasicLauncher", "LocalLauncher", "JoblibLauncher")
"""Those that start their workers on this machine; any other may use more machines."""
POSITIVE = (
    "study.max_device_hours",
    "study.rung",
    "worker.trial_timeout",
    "worker.trial_memory_gb",
)
"""What makes no sense at 0 or below."""


def check_sweep(
    cfg: DictConfig,
    space: Space,
    compose: Composer,
    *,
    is_basic: bool,
    problems: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Check everything that can be checked without training.

    Args:
        cfg: the sweep's configuration.
        space: what it searches.
        compose: over the live configs.
        is_basic: the launcher runs its jobs in this process.
        problems: those that are known already.

    Returns:
        Composed configurations, plain and resolved, that hold each choice once; the first of them
        is the first point's.

    Raises:
        ConfigError: all problems at once.
    """
    problems = list(problems)
    configs = []
    for point in probe_points(space):
        try:
            config = compose([*space.fixed, *space.to_overrides(point)])
            configs.append(config)
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(explain(error))
    for config in configs:
        problems += target_problems(config)
    if configs:
        problems += _objective_problems(configs[0], space)
    for part, build in (("sampler", make_sampler), ("pruner", make_pruner)):
        try:
            build(cfg.hydra.sweeper[part])
        except (HydraException, TypeError, ValueError) as error:
            problems.append(f"hydra.sweeper.{part} cannot be built: {first_line(error)}")
    problems += _pruning_problems(cfg, configs)
    problems += _range_problems(cfg)
    problems += _teacher_problems(cfg, space, configs)
    problems += _space_problems(cfg, space)
    problems += _launcher_problems(cfg, is_basic=is_basic)
    problems += _database_problems(cfg)
    with _noted(problems):
        problems += _device_problems(cfg, configs)
    for data in _distinct(configs, "data"):
        with _noted(problems):
            if news := prepare_data(data):
                print(news)
    for network in _distinct(configs, "network"):
        with _noted(problems):
            check_init_from(network)
    if has_recorder(cfg.logger):
        with _noted(problems):
            check_server(cfg.tracking.uri, cfg.tracking.experiment)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return configs


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except LzsweepError as error:
        problems.append(str(error))


def _space_problems(cfg: DictConfig, space: Space) -> list[str]:
    problems = []
    sampler = str(cfg.hydra.sweeper.sampler._target_).rpartition(".")[2]
    continuous = [p.key for p in space.parameters if p.is_interval]
    if sampler == "GridSampler" and continuous:
        problems.append(
            "hydra/sweeper/sampler=grid needs discrete choices only, but"
            f" {', '.join(continuous)} is an interval; use range or choice, or another sampler"
        )
    size = space.size()
    if space.is_grid and size is not None and size > GRID_LIMIT and cfg.study.n_trials is None:
        problems.append(
            f"a grid without study.n_trials may have {GRID_LIMIT} points, but this one has {size};"
            " set study.n_trials, or use an interval and let the sampler choose"
        )
    return problems


def _teacher_problems(
    cfg: DictConfig, space: Space, configs: Sequence[Mapping[str, Any]]
) -> list[str]:
    if cfg.study.warm_start is None:
        return []
    sampler = str(cfg.hydra.sweeper.sampler._target_).rpartition(".")[2]
    owned = [p.name for p in space.parameters if p.owner]
    why = ""
    if space.is_grid:
        why = "a grid tries every point"
    elif sampler not in LEARNERS:
        why = f"{sampler} learns from no others"
    elif sampler == "CmaEsSampler" and owned:
        why = f"{sampler} learns only where all is always searched, and {owned[0]} is not"
    if why:
        return [
            f"study.warm_start needs a sampler that learns, but {why};"
            " use an interval with hydra/sweeper/sampler=tpe, gp or cmaes, or leave it out"
        ]
    problems: list[str] = []
    # An objective that is none is told elsewhere.
    with suppress(ConfigError), _noted(problems):
        if configs:
            find_teacher(
                cfg.study.storage, cfg.study.warm_start, *objectives(configs[0]["objective"])
            )
    return problems


def _range_problems(cfg: DictConfig) -> list[str]:
    problems = []
    for key, least in LEAST.items():
        if (number := OmegaConf.select(cfg, key)) is not None and number < least:
            problems.append(f"{key} must be at least {least}, but got {number}")
    for key in POSITIVE:
        if (number := OmegaConf.select(cfg, key)) is not None and not number > 0:
            problems.append(f"{key} must be above 0, but got {number}")
    if cfg.study.target is not None and not math.isfinite(cfg.study.target):
        problems.append(f"study.target must be a finite number, but got {cfg.study.target}")
    with _noted(problems):
        if cfg.study.max_time is not None and not parse_time(cfg.study.max_time) > 0:
            problems.append(f"study.max_time must be above 0, but got {cfg.study.max_time}")
    return problems


def _objective_problems(config: Mapping[str, Any], space: Space) -> list[str]:
    try:
        metrics, _ = objectives(config["objective"])
    except ConfigError as error:
        return list(error.problems)
    problems = []
    is_ours = is_shipped(config["module"])  # what another logs the first worker sees: see sanity
    for metric in metrics:
        if is_ours and metric not in METRICS:
            near = difflib.get_close_matches(metric, METRICS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METRICS)}"
            problems.append(f"objective.metric must be logged, but {metric} never is; {hint}")
        searched = [p.key for p in space.parameters if "loss" in p.key.split(".")]
        if metric in WEIGHTED and searched:
            problems.append(
                f"an objective must not depend on what is searched, but {', '.join(searched)}"
                f" scales {metric}, and small weights would win;"
                " set objective.metric=val/loss_unweighted"
            )
    return problems


def _pruning_problems(cfg: DictConfig, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    problems = []
    resource, rung = cfg.study.resource, cfg.study.rung
    if resource not in get_args(Resource):
        problems.append(
            f"study.resource must be one of {', '.join(get_args(Resource))}, but got {resource};"
            f" {nearest(resource, get_args(Resource))}"
        )
    elif rung is None and resource != "epochs":
        problems.append(
            f"study.rung must say how many {resource} lie between two judgements, but is not set;"
            " set study.rung=..."
        )
    # What does not compose, or cannot be built, is told elsewhere.
    with suppress(HydraException, TypeError, ValueError, ConfigError):
        n_objectives = len(objectives(configs[0]["objective"])[0]) if configs else 1
        problems.append(pruner_problem(make_pruner(cfg.hydra.sweeper.pruner), n_objectives))
    return [problem for problem in problems if problem]


def _launcher_problems(cfg: DictConfig, *, is_basic: bool) -> list[str]:
    problems = []
    if is_basic and cfg.worker.count > 1:
        problems.append(
            f"the basic launcher runs one worker, but worker.count is {cfg.worker.count};"
            " use worker.slots for more trials at a time, or hydra/launcher=local or slurm"
        )
    if not is_slurm(str(cfg.hydra.launcher._target_)):
        if cfg.worker.dry_run or not cfg.worker.wait:
            problems.append(
                "only a Slurm cluster takes workers to go on alone, but hydra/launcher="
                f"{cfg.hydra.runtime.choices.get('hydra/launcher')}; set hydra/launcher=slurm, or"
                " start the sweep with lzsweep -m"
            )
    else:
        with _noted(problems):
            problems += limit_problems(cfg.hydra.launcher)
    return problems


def _database_problems(cfg: DictConfig) -> list[str]:
    problems: list[str] = []
    files = {}
    for key, url in (("study.storage", cfg.study.storage), ("tracking.uri", cfg.tracking.uri)):
        if (file := sqlite_file(str(url))) is not None:
            files[key] = file
    if len(files) > len(set(files.values())):
        problems.append(
            "study.storage and tracking.uri must be two databases, but both are"
            f" {cfg.tracking.uri}"
        )
    launcher = str(cfg.hydra.launcher._target_).rpartition(".")[2]
    for key, file in files.items():
        if launcher not in LOCAL_LAUNCHERS:
            problems.append(
                f"{key} must be reachable from other machines, where {launcher} may start workers,"
                f" but {file} is a file that only one machine may write; set it to a PostgreSQL or"
                " MLflow server"
            )
        elif mount := network_mount(file):
            problems.append(
                f"{key} must lie on a disk of this machine, because SQLite's locks do not hold on"
                f" a network file system, but {file} is on {mount}; set {key} to a file on a local"
                " disk, or to a server"
            )
    with _noted(problems):
        absolute_url(cfg.study.storage)
    with _noted(problems):
        resolve_uri(cfg.tracking.uri)
    return problems


def _device_problems(cfg: DictConfig, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    asked = {devices_per_trial(config["trainer"]) for config in configs}
    if len(asked) > 1:
        return [
            "trainer.devices must be the same for all trials, whose slots have so many, but got"
            f" {', '.join(map(str, sorted(asked)))}; sweep each number on its own"
        ]
    n_devices = max(asked, default=1)
    strategies = {str(config["trainer"].get("strategy", "auto")) for config in configs}
    if bad := sorted(s for s in strategies if "spawn" in s or "fork" in s or "notebook" in s):
        return [
            "trainer.strategy must leave the processes of a trial to its worker, but got"
            f" {', '.join(bad)}; set trainer.strategy=auto or ddp"
        ]
    launcher = cfg.hydra.launcher
    if str(launcher._target_).rpartition(".")[2] in LOCAL_LAUNCHERS:
        for config in configs:
            check_gpus(config["trainer"])
    if not is_slurm(str(launcher._target_)):
        find_slots(str(cfg.worker.slots), cfg.worker.slots_per_device, n_devices)
        return []
    # What the compute nodes have is not what is seen here.
    find_slots(str(cfg.worker.slots), cfg.worker.slots_per_device)
    return [
        f"trainer.devices must not exceed the GPUs of a worker, but got {n_devices} and"
        f" hydra.launcher.{key} asks for {n_gpus}; ask for {n_devices} or more"
        for key, n_gpus in gpus_asked(launcher).items()
        if n_gpus < n_devices
    ]


def _distinct(configs: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    found: list[Any] = []
    for config in configs:
        if config[key] not in found:
            found.append(config[key])
    return found

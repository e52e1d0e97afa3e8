"""The configuration: schemas behind the shipped options, and where the YAML files lie.

A shipped option names its schema in its defaults list (`/hydra/schema/network@_here_`), so our
keys are typed and misspelt ones refused. An option of a user's own brings no schema; the signature
of its `_target_` is its schema. The root stays open for additions with `+`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf._utils import get_omega_conf_dumper

from lzsweep.errors import ConfigError, UserError

COSTS = ("cost/parameters", "cost/flops", "cost/positions_per_s", "cost/train_s")
"""What `lzsweep.train.cost` logs of any module."""

MEANS = ("loss", "loss_unweighted", "policy_loss", "value_mse", "policy_top1", "policy_top5")
"""What the shipped module logs of each split, as means over its positions."""

METRICS = COSTS + tuple(f"{split}/{name}" for split in ("train", "val", "test") for name in MEANS)
"""What is logged while the shipped module is trained."""

WEIGHTED = ("train/loss", "val/loss", "test/loss")
"""Metrics that a searched loss weight scales, so that the search could cheat with them."""

NEVER_LOGGED = "an objective must be logged by the module"
"""How it is said that one was not."""

PRECISIONS = (
    "auto", "64", "32", "16", "bf16", "64-true", "32-true", "16-true", "bf16-true", "16-mixed",
    "bf16-mixed",
)  # fmt: skip
"""What Lightning takes on any device, and ours."""

BEST_CHECKPOINT = "checkpoints/best.ckpt"
LAST_CHECKPOINT = "checkpoints/last.ckpt"
WEIGHTS_FILE = "weights.txt.gz"
"""What a training leaves in its folder: states to resume from, and the best for the engine."""

ARTIFACTS = {BEST_CHECKPOINT: "checkpoints", WEIGHTS_FILE: ""}
"""What a training leaves in its folder -> where that goes among the artifacts of its run."""


@dataclass
class Tracking:
    """Where runs are recorded."""

    uri: str = "${oc.env:MLFLOW_TRACKING_URI,'sqlite:///mlflow.db'}"
    experiment: str = "lzsweep"
    system_metrics_s: float = 10.0  # seconds between two samples of CPU, memory, GPU; 0: none


@dataclass
class Study:
    """What a sweep does, all workers together."""

    name: str | None = None  # null: made of the sweep's file and a hash of what it sweeps
    n_trials: int | None = None  # finished trials; null: 20, or the full grid if all is discrete
    max_time: Any = None  # since the study began: seconds, or DD:HH:MM:SS
    max_device_hours: float | None = None  # of whole devices, all attempts together
    target: float | None = None  # value of the first objective that is good enough
    patience: int | None = None  # finished trials without a better one
    storage: str = "${oc.env:LZSWEEP_STORAGE,'sqlite:///lzsweep.db'}"
    space: dict[str, Any] = field(default_factory=dict)  # key: sweep text; the command line wins
    enqueue: list[Any] = field(default_factory=list)  # points to train first: best.yaml, {key: v}
    warm_start: str | None = None  # a study of the same database that the sampler learns from
    max_retries: int = 3  # times a trial may be lost to killed processes and machines
    max_same_errors: int = 3  # the same error this often running stops the study
    seeds: int = 1  # trainings of each point; judged by their mean
    resource: str = "epochs"  # what pruning counts: epochs, steps, positions or seconds
    rung: float | None = None  # of the resource between two judgements; null: 1 epoch


@dataclass
class Worker:
    """What one worker does; a worker trains the trials of one machine's slots."""

    count: int = 1  # workers that the launcher starts; the basic launcher runs one
    slots: str = "auto"  # trials at a time; auto: one a GPU, without GPUs one a core
    slots_per_device: int = 1  # trials that share one GPU
    trial_timeout: float | None = None  # seconds a trial may train
    trial_memory_gb: float | None = None  # own memory a trial's processes may take; 2**30 bytes
    wait: bool = True  # false: return once the cluster has the workers, as `lzsweep submit` does
    dry_run: bool = False  # print the cluster's job script and do no more
    probe: bool = True  # ask from a compute node for the folder and the servers, before all else
    sanity: bool = (
        True  # let a module that is not ours train a batch first: is the objective logged?
    )
    join: str | None = None  # set by the controller: be a worker of this study


@dataclass
class Root:
    """The keys at the root of the configuration."""

    lr: float = 0.05
    batch_size: int = 256
    seed: int = 1
    precision: str = "auto"
    objective: Any = MISSING
    module: Any = MISSING
    data: Any = MISSING
    network: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = None
    logger: Any = None
    tracking: Tracking = field(default_factory=Tracking)
    study: Study = field(default_factory=Study)
    worker: Worker = field(default_factory=Worker)


@dataclass
class Network:
    """Leela Zero's residual tower."""

    _target_: str = "lzsweep.train.network.Network"
    blocks: int = MISSING
    filters: int = MISSING
    init_from: str | None = None  # start from a weights file, a checkpoint, a run, a study
    in_channels: int = "${data.in_channels}"  # type: ignore[assignment]  # OmegaConf resolves it
    board_size: int = "${data.board_size}"  # type: ignore[assignment]
    space: dict[str, Any] = field(default_factory=dict)  # key: sweep text, when this is chosen


@dataclass
class DataFilter:
    """Which games to take, by what their SGF says; ranges are inclusive, null takes all."""

    min_moves: int = 0
    min_rank: str | None = None  # of both players: 5k, 6d, 1p
    komi: list[float] | None = None  # [lowest, highest]
    dates: list[str] | None = None  # [first, last]: 2008, 2008-03 or 2008-03-31
    handicap: list[int] | None = None  # [fewest, most] stones; [0,0] for even games


@dataclass
class Data:
    """Games, and how they become batches."""

    _target_: str = "lzsweep.train.data.GoData"
    path: Any = MISSING  # file, folder, glob or a list of these; or a .store
    kind: str = "sgf"  # what path holds: sgf or chunks
    strict: bool = False  # refuse also the games that leelaz cuts short or mislabels
    filter: DataFilter = field(default_factory=DataFilter)
    cache_dir: str = "${oc.env:LZSWEEP_CACHE,'~/.cache/lzsweep'}"
    batch_size: int = "${batch_size}"  # type: ignore[assignment]
    val_fraction: float = 0.1  # of the games, by a hash of their moves
    test_fraction: float = 0.1
    augment: bool = True  # one of the 8 board symmetries at random for each training position
    device_resident: bool = False  # keep the whole store in the device's memory
    num_workers: int = 0  # loader processes; gathering packed rows rarely needs any
    board_size: int = 19
    in_channels: int = 18
    seed: int = "${seed}"  # type: ignore[assignment]
    space: dict[str, Any] = field(default_factory=dict)


@dataclass
class Loss:
    """Weights of the parts of the training loss, and what it is softened by."""

    policy: float = 1.0
    value: float = 1.0
    l2: float = 1e-4  # on conv and dense weights, not on biases
    label_smoothing: float = 0.0  # part of each move's weight that all moves share in training
    space: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trainer:
    """Every argument of `pytorch_lightning.Trainer` but those that we build ourselves."""

    _target_: str = "pytorch_lightning.Trainer"
    accelerator: str = "auto"
    strategy: Any = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    fast_dev_run: Any = False
    max_epochs: int | None = 10
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: Any = None
    limit_train_batches: Any = None
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    limit_predict_batches: Any = None
    overfit_batches: Any = 0.0
    val_check_interval: Any = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = 0
    log_every_n_steps: int | None = 50
    enable_checkpointing: bool | None = True
    enable_progress_bar: bool | None = True
    enable_model_summary: bool | None = False
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = False
    profiler: Any = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: Any = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | None = None
    enable_autolog_hparams: bool = False
    model_registry: str | None = None
    space: dict[str, Any] = field(default_factory=dict)


@cache
def register_schemas() -> None:
    """Put the schemas where defaults lists find them; below `hydra/` the help hides them."""
    for schema in (Root, Network, Data, Loss, Trainer):
        ConfigStore.instance().store(
            name=schema.__name__.lower(), group="hydra/schema", node=schema, replace=True
        )


def conf_dir() -> Path:
    """The shipped configs: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


class OwnConf(SearchPathPlugin):
    """Searches the user's own `./conf` before ours; never the working folder itself."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = Path.cwd() / "conf"
        if own.is_dir() and own.resolve() != conf_dir().resolve():
            search_path.prepend("own", f"file://{own}")


Direction = Literal["minimize", "maximize"]


def objectives(objective: Any) -> tuple[tuple[str, ...], tuple[Direction, ...]]:
    """Metrics and directions of `objective`.

    Args:
        objective: `{metric, direction}`, the same with a list for each, or a list of such pairs.

    Raises:
        ConfigError: a part is missing or no direction.
    """
    pairs = objective if isinstance(objective, list) else [objective]
    if isinstance(objective, dict) and isinstance(objective.get("metric"), list):
        metrics, directions = objective["metric"], objective.get("direction")
        if not isinstance(directions, list):
            directions = [directions] * len(metrics)
        if len(metrics) != len(directions):
            raise ConfigError(
                [f"objective needs a direction for each metric, but got {metrics}, {directions}"]
            )
        pairs = [{"metric": m, "direction": d} for m, d in zip(metrics, directions, strict=True)]
    for pair in pairs:
        if not isinstance(pair, dict) or set(pair) != {"metric", "direction"}:
            raise ConfigError([f"objective must hold a metric and a direction, but got {pair}"])
        if pair["direction"] not in get_args(Direction):
            raise ConfigError(
                [
                    "objective.direction must be minimize or maximize, but got"
                    f" {pair['direction']!r}"
                ]
            )
    return tuple(p["metric"] for p in pairs), tuple(p["direction"] for p in pairs)


def objectives_of(metrics: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """The objectives among the metrics.

    Raises:
        UserError: one was never logged.
    """
    if missing := [name for name in names if name not in metrics]:
        near = [m for name in missing for m in difflib.get_close_matches(name, metrics, n=1)]
        hint = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
        raise UserError(
            f"{NEVER_LOGGED}, but {', '.join(missing)} never was;"
            f" logged: {', '.join(sorted(metrics)) or 'nothing'}; {hint}set objective.metric"
        )
    return tuple(metrics[name] for name in names)


def is_shipped(module: Mapping[str, Any]) -> bool:
    """Whether the module of a training is ours, which logs `METRICS` and nothing else."""
    return str(module.get("_target_")).startswith("lzsweep.")


def best_by(objective: Any) -> tuple[str, Direction]:
    """What decides which checkpoint of a training is its best.

    The first objective that tells checkpoints apart: a cost is the same for all of them, or lower
    the earlier. If all objectives are costs, the default objective decides.
    """
    for metric, direction in zip(*objectives(objective), strict=True):
        if metric not in COSTS:
            return metric, direction
    return "val/loss_unweighted", "minimize"


def to_yaml(config: Mapping[str, Any]) -> str:
    """A plain configuration as OmegaConf writes it, without making it OmegaConf's first.

    That takes ten times as long, while the next trial waits for its slot.
    """
    return yaml.dump(
        config,
        Dumper=get_omega_conf_dumper(),
        default_flow_style=False,
        allow_unicode=True,
        sort_keys=False,
    )


def sources(loader: ConfigLoader) -> list[str]:
    """Where a command line's configs come from, first match first, without Hydra's own."""
    paths = [element.path for element in loader.get_search_path().get_path()]
    ours = [p for p in paths if p and p not in ("pkg://hydra.conf", "structured://")]
    return [p if "://" in p else f"file://{p}" for p in ours]


def make_loader(paths: Sequence[str]) -> ConfigLoaderImpl:
    """A config loader over just these places: no live `./conf`, whatever folder we are in."""
    Plugins.instance()  # registers what reads `file://` and `pkg://`
    register_schemas()
    search_path = ConfigSearchPathImpl()
    search_path.append("hydra", "pkg://hydra.conf")
    for path in paths:
        search_path.append("lzsweep", path)
    search_path.append("schema", "structured://")
    return ConfigLoaderImpl(search_path)


def take_choices(config: DictConfig) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Take Hydra's node and the sub-spaces out of what Hydra composed, so that a training is left.

    Returns:
        The options chosen (group -> option) and their sub-spaces (group -> key -> sweep text).
    """
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return choices, take_spaces(config, choices)


def resolve(config: DictConfig) -> dict[str, Any]:
    """Resolve a training's configuration into plain data.

    Raises:
        OmegaConfBaseException: an interpolation is wrong, or a value is missing.
    """
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def take_spaces(config: DictConfig, groups: Iterable[str]) -> dict[str, Any]:
    """Take the sub-spaces of options (`space:` in a group's file) out of a configuration.

    Args:
        config: changed in place.
        groups: those that were chosen from, `db` or `db@package`.

    Returns:
        Group -> its sub-space, where there is one.
    """
    spaces: dict[str, Any] = {}
    for group in groups:
        name, _, package = group.partition("@")
        node = OmegaConf.select(config, package or name.replace("/", "."))
        if (
            name.split("/")[0] == "hydra"
            or not isinstance(node, DictConfig)
            or "space" not in node
        ):
            continue
        space = node["space"]
        with open_dict(node):
            del node["space"]
        if space:
            is_config = OmegaConf.is_config(space)
            spaces[group] = OmegaConf.to_container(space) if is_config else space
    return spaces

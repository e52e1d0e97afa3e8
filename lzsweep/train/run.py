"""One training run: `lzsweep network=small`, and each job of a sweeper that is not ours."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lzsweep.config import (
    ARTIFACTS,
    LAST_CHECKPOINT,
    WEIGHTS_FILE,
    objectives,
    objectives_of,
    take_spaces,
    to_yaml,
)
from lzsweep.errors import ConfigError, LzsweepError, UserError
from lzsweep.explain import target_problems
from lzsweep.imports import import_lightning
from lzsweep.tracking.client import redact
from lzsweep.tracking.journal import Status
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.recorder import CONFIG_NAME, Recorder, has_recorder
from lzsweep.tracking.runs import check_server
from lzsweep.train.build import ensure_store, find_store
from lzsweep.train.devices import check_gpus
from lzsweep.train.source import check_init_from
from lzsweep.train.store import Store

GO_DATA = "lzsweep.train.data.GoData"


def run(cfg: DictConfig) -> float | list[float]:
    """Train once in Hydra's output folder and print what came of it.

    Returns:
        The objective, or a list of them in the order of the config.

    Raises:
        UserError: the data or a GPU is missing, MLflow does not answer, or an objective was never
            logged.
    """
    hydra = HydraConfig.get()
    take_spaces(cfg, hydra.runtime.choices)  # only a sweep searches
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    plain = {str(key): value for key, value in config.items()}
    folder = Path(hydra.runtime.output_dir)
    if problems := target_problems(plain):
        raise ConfigError(problems)
    check_gpus(plain["trainer"])
    check_init_from(plain["network"])
    _check_folder(folder, plain)
    if news := prepare_data(plain["data"]):
        print(news)
    overrides = list(hydra.overrides.task)
    name = f"{_job(hydra)}{' '.join(overrides)}" or "defaults"
    metrics = train_recorded(plain, folder, name=name, params=_params(overrides))
    values = objectives_of(metrics, objectives(plain["objective"])[0])
    return values[0] if len(values) == 1 else list(values)


def _check_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse to go on with what other words began: half of each would be neither."""
    kept = folder / CONFIG_NAME
    if not (folder / LAST_CHECKPOINT).exists() or not kept.exists():
        return
    old = yaml.safe_load(kept.read_text())
    if changes := list(_changes(old["module"], config["module"], "module")):
        raise UserError(
            f"a folder holds one training, but {folder} holds one with {', '.join(changes)};"
            " choose another hydra.run.dir, or go on with the same words"
        )


def _changes(old: Any, new: Any, name: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _changes(old.get(key), new.get(key), f"{name}.{key}")
    elif old != new:
        yield f"{name}={old} (now {new})"


def train_recorded(
    config: dict[str, Any],
    folder: Path,
    *,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str] | None = None,
    threads: int = 0,
) -> dict[str, float]:
    """Train in a folder, as a run of its own, and print what came of it.

    Args:
        config: plain and resolved.
        folder: of the run.
        name: of the run in MLflow.
        params: what is compared there.
        tags: of the run.
        threads: CPU threads that torch may use; 0 leaves the number to torch.

    Returns:
        All metrics.
    """
    if _is_one_of_several():
        import_lightning()
        from lzsweep.train.environment import outer_rank
        from lzsweep.train.fit import train

        if outer_rank(config["trainer"]):  # rank 0 records and tells
            return train(config, folder=folder)
    with _recorded(config, folder, name, params, tags or {}):
        import_lightning()  # with torch: many seconds
        import torch

        from lzsweep.train.export import publish
        from lzsweep.train.fit import train

        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            metrics = train(config, folder=folder)
            publish(folder)
        finally:
            torch.set_num_threads(before)
    for metric in sorted(metrics):
        print(f"{metric:24} {metrics[metric]:.4f}")
    print(f"checkpoints: {folder / 'checkpoints'}")
    if (folder / WEIGHTS_FILE).exists():
        print(f"play with it: leelaz -w {folder / WEIGHTS_FILE}")
    return metrics


def _is_one_of_several() -> bool:
    # Without an import of torch, which is not wanted before the server has answered.
    return os.environ.get("SLURM_NTASKS", "1") != "1" or "LOCAL_RANK" in os.environ


def prepare_data(data: Mapping[str, Any]) -> str:
    """Turn the games of a `data` node into the store, before anything heavy is imported.

    No trial waits for it then, and missing or unusable games are told at once. A user's own
    `_target_` prepares its data itself.

    Returns:
        What was read and what was left out and why, if games were read now; else an empty text.

    Raises:
        DataError: no game there can be used.
    """
    if data.get("_target_") != GO_DATA:
        return ""
    chosen = _chosen(data)
    is_new = not find_store(data["path"], data["cache_dir"], **chosen).exists()
    info = Store.open(ensure_store(data["path"], data["cache_dir"], **chosen)).info
    if not is_new:
        return ""
    lines = [f"read {info['n_games']} games, {info['n_positions']} positions: {info['source']}"]
    lines += [
        f"left out {n}: {reason}, such as {info['examples'].get(reason, '')}"
        for reason, n in info["drops"].items()
    ]
    return "\n".join(lines)


def data_version(data: Mapping[str, Any]) -> dict[str, str]:
    """What a `data` node asks for -> the hash of the games that it finds there now.

    Nothing for a user's own `_target_`, whose data nobody here knows.

    Raises:
        DataError: the games are not there.
    """
    if data.get("_target_") != GO_DATA:
        return {}
    chosen = _chosen(data)
    store = find_store(data["path"], data["cache_dir"], **chosen)
    version = store.stem
    if str(data["path"]).endswith(".store"):  # named by whoever made it
        sections = json.dumps(Store.open(store).sections, sort_keys=True)
        version = hashlib.blake2b(sections.encode(), digest_size=16).hexdigest()
    return {json.dumps({"path": data["path"], **chosen}, sort_keys=True): version}


def _chosen(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("kind", "strict", "filter") if key in data}


def _job(hydra: Any) -> str:
    return f"#{hydra.job.num:03d} " if hydra.mode == RunMode.MULTIRUN else ""


@contextmanager
def _recorded(
    config: dict[str, Any],
    folder: Path,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
) -> Iterator[None]:
    """Record the body as an MLflow run, if the logger is ours: journal, delivery, true status."""
    tracking = config["tracking"]
    if not has_recorder(config["logger"]):
        yield
        return
    check_server(tracking["uri"], tracking["experiment"])
    recorder = Recorder(**tracking)
    recorder.start(
        folder,
        name=name,
        params=params,
        tags=tags,
        config=to_yaml(config),
    )
    recorder.watch(folder)
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as signal:  # Lightning makes an exit of a signal
        status = "KILLED"
        raise LzsweepError(
            f"the training was stopped by a signal; its last checkpoint is in {folder}"
        ) from signal
    finally:
        recorder.end(folder, status, artifacts=ARTIFACTS if status == "FINISHED" else None)
        recorder.close()
    uri = redact(tracking["uri"])
    if run_id := run_id_of(folder):
        print(f"run {run_id} at {uri}")
    else:
        print(f"the run is not at {uri} yet: lzsweep sync {folder} delivers it")


def _params(overrides: list[str]) -> dict[str, str]:
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, equals, value in pairs if equals}

"""One training run: `lzsweep network=small`, and each job of a sweeper that is not ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lzsweep.config import ARTIFACTS, WEIGHTS_FILE, objectives, target_problems
from lzsweep.errors import ConfigError, LzsweepError, UserError
from lzsweep.tracking.client import redact
from lzsweep.tracking.journal import Status
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.recorder import Recorder, has_recorder
from lzsweep.tracking.runs import check_server
from lzsweep.train.build import ensure_store, find_store
from lzsweep.train.source import check_init_from
from lzsweep.train.store import Store


def run(cfg: DictConfig) -> float | list[float]:
    """Train once in Hydra's output folder and print what came of it.

    Returns:
        The objective, or a list of them in the order of the config.

    Raises:
        UserError: the data is missing, MLflow does not answer, or an objective was never logged.
    """
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    plain = {str(key): value for key, value in config.items()}
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if problems := target_problems(plain):
        raise ConfigError(problems)
    check_init_from(plain["network"])
    if news := prepare_data(plain["data"]):
        print(news)
    with _recorded(plain, folder, list(hydra.overrides.task), job=_job(hydra)):
        from lzsweep.train.fit import train  # torch and Lightning: tens of seconds

        metrics = train(plain, folder=folder)
    for name in sorted(metrics):
        print(f"{name:24} {metrics[name]:.4f}")
    print(f"checkpoints: {folder / 'checkpoints'}")
    if (folder / WEIGHTS_FILE).exists():
        print(f"play with it: leelaz -w {folder / WEIGHTS_FILE}")
    values = objectives_of(metrics, objectives(plain["objective"])[0])
    return values[0] if len(values) == 1 else list(values)


def prepare_data(data: Mapping[str, Any]) -> str:
    """Turn the games of a `data` node into the store, before anything heavy is imported.

    No trial waits for it then, and missing or unusable games are told at once. A user's own
    `_target_` prepares its data itself.

    Returns:
        What was read and what was left out and why, if games were read now; else an empty text.

    Raises:
        DataError: no game there can be used.
    """
    if data.get("_target_") != "lzsweep.train.data.GoData":
        return ""
    chosen = {key: data[key] for key in ("kind", "strict", "filter") if key in data}
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


def objectives_of(metrics: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """The objectives among the metrics.

    Raises:
        UserError: one was never logged.
    """
    if missing := [name for name in names if name not in metrics]:
        raise UserError(
            f"an objective must be logged by the module, but {', '.join(missing)} never was;"
            f" logged: {', '.join(sorted(metrics))}; set objective.metric"
        )
    return tuple(metrics[name] for name in names)


def _job(hydra: Any) -> str:
    return f"#{hydra.job.num:03d} " if hydra.mode == RunMode.MULTIRUN else ""


@contextmanager
def _recorded(
    config: dict[str, Any], folder: Path, overrides: list[str], job: str
) -> Iterator[None]:
    """Record the body as an MLflow run, if the logger is ours: journal, delivery, true status."""
    tracking = config["tracking"]
    if not has_recorder(config["logger"]):
        yield
        return
    check_server(tracking["uri"])
    recorder = Recorder(**tracking)
    recorder.start(
        folder,
        name=f"{job}{' '.join(overrides)}" or "defaults",
        params=_params(overrides),
        tags={},
        config=OmegaConf.to_yaml(OmegaConf.create(config)),
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
    print(f"run {run_id_of(folder)} at {redact(tracking['uri'])}")


def _params(overrides: list[str]) -> dict[str, str]:
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, equals, value in pairs if equals}

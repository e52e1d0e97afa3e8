"""The training script: instantiate, fit, test, return the metrics.

A configuration is plain data with a node for each part; a node's `_target_` names what is built.
`module` and `data` are any LightningModule and LightningDataModule; ours are `LeelaZero` and
`GoData`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra.utils
import pytorch_lightning as pl
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers.logger import DummyLogger

from lzsweep.config import best_by, objectives
from lzsweep.train.checkpoint import Checkpoints
from lzsweep.train.cost import Cost
from lzsweep.train.environment import find_environment
from lzsweep.train.export import initialise
from lzsweep.train.precision import resolve_precision
from lzsweep.train.quiet import quiet
from lzsweep.train.ranks import companions, n_processes

# A configuration is as trusted as the user's own code: it names classes of that code.
instantiate = partial(
    hydra.utils.instantiate,
    _execution_whitelist_=hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS,
    _convert_="all",
)

_ONE_BATCH = {
    "fast_dev_run": True,  # which also keeps callbacks from writing checkpoints
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "profiler": None,
    "enable_progress_bar": False,
}
"""What a trainer is told instead where one batch is to show what is logged."""


def rehearse() -> None:
    """Build something small as each training begins by building its own; nothing comes of it.

    A forked process copies what it touches for the first time, and Hydra, torch and torchmetrics
    find out much at their first use. Done before there is a trial, it delays none.
    """
    pl.seed_everything(0, workers=True, verbose=False)
    data = {"_target_": "lzsweep.train.data.GoData", "path": "", "cache_dir": "", "batch_size": 1}
    network = {"_target_": "lzsweep.train.network.Network", "blocks": 1, "filters": 1}
    module = {
        "_target_": "lzsweep.train.module.LeelaZero",
        "network": network,
        "loss": {"policy": 1.0, "value": 1.0, "l2": 0.0},
        "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True},
        "schedule": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "_partial_": True},
        "lr": 1.0,
    }
    for node in (data, module):
        instantiate(node)


@quiet()
def train(
    cfg: Mapping[str, Any],
    *,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    plugins: Sequence[Any] = (),
) -> dict[str, float]:
    """Train, or go on where `folder` holds the last checkpoint of this training, and test.

    Args:
        cfg: plain data: seed, precision, objective, data, module, trainer, callbacks, logger.
        folder: the run's folder, for checkpoints and logs.
        callbacks: further Lightning callbacks.
        plugins: Lightning plugins, such as the cluster environment.

    Returns:
        All metrics: `test/` and `val/` of the best checkpoint, `train/` and `cost/` when it was
        written.
    """
    run = partial(_train, cfg, folder, callbacks, plugins)
    with companions(n_processes(cfg["trainer"]), run):
        return run()


def _train(
    cfg: Mapping[str, Any], folder: Path, callbacks: Sequence[Callback], plugins: Sequence[Any]
) -> dict[str, float]:
    data, module = _make_parts(cfg)
    checkpoints = Checkpoints(folder, *best_by(cfg["objective"]))
    cost = Cost(objectives(cfg["objective"])[0])
    trainer = _make_trainer(
        cfg,
        folder=folder,
        logger=instantiate(cfg["logger"], save_dir=folder) if cfg["logger"] else False,
        callbacks=[cost, *callbacks, checkpoints],
        plugins=plugins,
    )
    resume, safe = checkpoints.resume_path(), {"datamodule": data, "weights_only": True}
    if resume is None:
        initialise(module)
    trainer.fit(module, ckpt_path=resume, **safe)
    metrics = checkpoints.metrics(trainer)
    # Rank 0 wrote it; where `srun` started the others, their folder may be another one.
    best = trainer.strategy.broadcast(checkpoints.best_path())
    trainer.test(module, ckpt_path=best, verbose=False, **safe)
    return {name: float(value) for name, value in trainer.callback_metrics.items()} | metrics


@quiet()
def train_one_batch(
    cfg: Mapping[str, Any], *, folder: Path, plugins: Sequence[Any] = ()
) -> dict[str, float]:
    """Train and validate one batch, on one device; test one if an objective is not logged by then.

    Nothing is recorded, and no checkpoint is written.

    Args:
        cfg: as of `train`.
        folder: for what the parts write by themselves.
        plugins: Lightning plugins, such as the cluster environment.

    Returns:
        All metrics that were logged.
    """
    cfg = {**cfg, "trainer": {**cfg["trainer"], **_ONE_BATCH}}
    data, module = _make_parts(cfg)
    metrics, _ = objectives(cfg["objective"])
    trainer = _make_trainer(
        cfg,
        folder=folder,
        logger=DummyLogger() if cfg["logger"] else False,
        callbacks=[Cost(metrics)],
        plugins=plugins,
    )
    trainer.fit(module, datamodule=data)
    logged = {**trainer.callback_metrics}
    if not set(metrics) <= set(logged):
        trainer.test(module, datamodule=data, verbose=False)
        logged |= trainer.callback_metrics
    return {name: float(value) for name, value in logged.items()}


def _make_parts(cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    """The data and the module, seeded."""
    pl.seed_everything(cfg["seed"], workers=True, verbose=False)
    return instantiate(cfg["data"]), instantiate(cfg["module"])


def _make_trainer(
    cfg: Mapping[str, Any],
    *,
    folder: Path,
    logger: Any,
    callbacks: Sequence[Callback],
    plugins: Sequence[Any],
) -> pl.Trainer:
    """The trainer, with the configured callbacks before these."""
    extra = [instantiate(node) for node in (cfg["callbacks"] or {}).values()]
    make_trainer = instantiate(cfg["trainer"], _partial_=True)
    plugins = [*(make_trainer.keywords.get("plugins") or ()), *plugins]
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins += filter(None, [find_environment(cfg["trainer"])])
    trainer: pl.Trainer = make_trainer(
        logger=logger,
        callbacks=[*extra, *callbacks],
        plugins=plugins,
        precision=resolve_precision(cfg["precision"], cfg["trainer"]["accelerator"]),
        default_root_dir=folder,
    )
    return trainer

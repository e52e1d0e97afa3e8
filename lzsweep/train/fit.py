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
    pl.seed_everything(cfg["seed"], workers=True, verbose=False)
    precision = resolve_precision(cfg["precision"], cfg["trainer"]["accelerator"])
    data = instantiate(cfg["data"])
    module = instantiate(cfg["module"])
    checkpoints = Checkpoints(folder, *best_by(cfg["objective"]))
    cost = Cost(objectives(cfg["objective"])[0])
    extra = [instantiate(node) for node in (cfg["callbacks"] or {}).values()]
    make_trainer = instantiate(cfg["trainer"], _partial_=True)
    plugins = [*(make_trainer.keywords.get("plugins") or ()), *plugins]
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins += filter(None, [find_environment(cfg["trainer"])])
    trainer = make_trainer(
        logger=instantiate(cfg["logger"], save_dir=folder) if cfg["logger"] else False,
        callbacks=[*extra, cost, *callbacks, checkpoints],
        plugins=plugins,
        precision=precision,
        default_root_dir=folder,
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

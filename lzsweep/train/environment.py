"""Who counts the processes of a training that was started inside a Slurm job.

Lightning's own choice requeues the job at SIGUSR1, a signal that has another owner here, and
refuses a training whose devices are not the job's tasks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment


def find_environment(trainer: Mapping[str, Any]) -> ClusterEnvironment | None:
    """What tells the trainer its rank and world size.

    Args:
        trainer: the trainer's arguments: devices, num_nodes.

    Returns:
        In a Slurm job its tasks, which never requeue it, if there is one for each device; else
        processes that Lightning starts. Outside of Slurm, and where `torchrun` started the
        processes, None: Lightning finds what it needs.
    """
    if "SLURM_NTASKS" not in os.environ or TorchElasticEnvironment.detect():
        return None
    n_devices = count_devices(trainer)
    n_nodes = int(trainer.get("num_nodes") or 1)
    n_tasks = int(os.environ["SLURM_NTASKS"])
    wanted = {"SLURM_NTASKS_PER_NODE": n_devices, "SLURM_NNODES": n_nodes}
    known = {name: int(os.environ.get(name, number)) for name, number in wanted.items()}
    # A batch script's own process is a task; the shell of an allocation is none.
    is_task = "SLURM_PROCID" in os.environ
    # Lightning wants the tasks per node said as soon as there are several.
    is_said = n_tasks == 1 or "SLURM_NTASKS_PER_NODE" in os.environ
    if is_task and is_said and n_tasks == n_devices * n_nodes and known == wanted:
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def is_started_outside(trainer: Mapping[str, Any]) -> bool:
    """Whether somebody else, `srun` or `torchrun`, starts a process for each device."""
    return (
        "LOCAL_RANK" in os.environ
        or TorchElasticEnvironment.detect()
        or isinstance(find_environment(trainer), SLURMEnvironment)
    )


def outer_rank(trainer: Mapping[str, Any]) -> int:
    """Which of the processes that somebody else started this is; 0 where there is only one."""
    if not is_started_outside(trainer):
        return 0
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def count_devices(trainer: Mapping[str, Any]) -> int:
    """How many devices of a node the trainer's arguments mean."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    if text in ("auto", "-1"):
        is_gpu = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")
        return (torch.cuda.device_count() if is_gpu else 0) or 1
    return len([part for part in text.split(",") if part]) if "," in text else int(text)

"""Which process counter a training gets, by the variables that Slurm sets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback

from lzsweep.train.environment import find_environment
from lzsweep.train.fit import train

TASK = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
ONE = {**TASK, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
FOUR = {**TASK, "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "trainer", "kind"),
    [
        ({}, {"devices": 1}, None),
        (ONE, {"devices": 1}, SLURMEnvironment),
        (ONE, {"devices": [0], "num_nodes": 1}, SLURMEnvironment),
        ({**ONE, "SLURM_NTASKS_PER_NODE": "1"}, {"devices": 2}, LightningEnvironment),
        ({**ONE, "SLURM_NNODES": "2"}, {"devices": 1}, LightningEnvironment),
        ({"SLURM_NTASKS": "1"}, {"devices": 1}, LightningEnvironment),
        (FOUR, {"devices": "0,1", "num_nodes": 2}, LightningEnvironment),
        (
            {**FOUR, "SLURM_NTASKS_PER_NODE": "2"},
            {"devices": 2, "num_nodes": 2},
            SLURMEnvironment,
        ),
        ({**ONE, "TORCHELASTIC_RUN_ID": "1"}, {"devices": 1}, None),
    ],
)
def test_the_tasks_are_taken_if_there_is_one_for_each_device(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    trainer: dict[str, Any],
    kind: type[ClusterEnvironment] | None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    found = find_environment(trainer)

    assert type(found) is (kind or type(None))
    assert not isinstance(found, SLURMEnvironment) or not found.auto_requeue


class Look(Callback):
    """Keeps who owns SIGUSR1 while a training runs, and what counts its processes."""

    handler: Any = None
    environment: Any = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.handler = signal.getsignal(signal.SIGUSR1)
        self.environment = trainer._accelerator_connector.cluster_environment


def test_a_training_in_a_slurm_job_leaves_its_signals_alone(
    make_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ONE.items():
        monkeypatch.setenv(name, value)
    look, own, before = Look(), Look(), signal.getsignal(signal.SIGUSR1)
    once = {"trainer__max_steps": 1, "trainer__limit_val_batches": 1}

    train(make_config(**once), folder=tmp_path / "slurm", callbacks=[look])

    assert isinstance(look.environment, SLURMEnvironment)
    assert look.handler == before

    chosen = LightningEnvironment()
    train(make_config(**once), folder=tmp_path / "own", callbacks=[own], plugins=[chosen])

    assert own.environment is chosen

"""The Hydra sweeper `pull`: hands workers to the launcher, not trials.

Hydra imports every plug-in at each start, so this module imports nothing heavy.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lzsweep.imports import no_collection
from lzsweep.sweep.forkserver import end_unused_forkserver, start_forkserver, uses_compiler


def is_basic(config: DictConfig) -> bool:
    """Whether the launcher runs the worker in this process."""
    return str(config.hydra.launcher._target_).endswith("BasicLauncher")


class PullSweeper(Sweeper):
    """Opens or joins a study and launches `worker.count` workers that pull its trials."""

    def __init__(self, sampler: DictConfig, pruner: DictConfig) -> None:
        """Take what Hydra hands over; each worker makes its own of both."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        if is_basic(self.config):
            # The trials will be forked here; their imports run beside ours and the checks.
            start_forkserver(compiles=uses_compiler(self.config))
        else:
            end_unused_forkserver()  # the workers, each with its own, are elsewhere
        with no_collection():
            from lzsweep.sweep.controller import Controller

        assert self.hydra_context is not None
        return Controller(self.config, self.hydra_context, self.task_function).run(arguments)

"""Modules that stand in for others while something is imported."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest

from lzsweep.imports import import_lightning, stand_in
from tests.go.engine import PROJECT


def test_a_stand_in_is_there_for_a_while_and_only_where_nothing_was() -> None:
    name = "colorsys"  # a module that nobody here has imported
    sys.modules.pop(name, None)
    fake = ModuleType(name)
    with stand_in(name, fake):
        assert importlib.import_module(name) is fake
    real = importlib.import_module(name)
    assert real is not fake
    with stand_in(name, fake):
        assert importlib.import_module(name) is real
    del sys.modules[name]
    with stand_in(name, None), pytest.raises(ModuleNotFoundError, match=name):
        importlib.import_module(name)
    assert name not in sys.modules


def train_plot_and_compile() -> None:
    """In a process that has imported nothing yet."""
    import_lightning()
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.utilities.compile import _maybe_unwrap_optimized
    from torch.utils.data import DataLoader, TensorDataset
    from torchmetrics import MeanMetric, MetricCollection

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.mean = torch.nn.Linear(3, 3), MeanMetric()

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch[0]).square().mean()
            self.log("loss", self.mean(loss))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    def fit(module: pl.LightningModule) -> None:
        trainer = pl.Trainer(
            max_steps=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(TensorDataset(torch.ones(9, 3)), batch_size=3))

    def is_imported(name: str) -> bool:
        return name in sys.modules

    module = Module()
    fit(module)
    for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop):
        optimizer = make(module.parameters(), lr=0.1)
        module.net(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
    inspect.getmodule(len)  # looks at all modules
    assert not any(map(is_imported, ("sympy", "matplotlib.figure", "scipy.signal._spline")))

    axes: Any = module.mean.plot()[1]
    assert is_imported("matplotlib.figure")
    MetricCollection([module.mean]).plot(ax=axes, together=True)  # refuses what is no Axes
    assert not is_imported("sympy")

    config = importlib.import_module("torch._dynamo.config")
    assert is_imported("sympy")
    assert torch._dynamo.config is config is sys.modules[config.__name__]
    assert config.__spec__ and str(config.__spec__.origin).endswith("config.py")

    compiled: Any = torch.compile(module)
    assert _maybe_unwrap_optimized(compiled) is module
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compile(module.net, backend=backend)(torch.ones(2, 3))
    assert len(graphs) == 1
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"Optimizer\.zero_grad"):
        torch.compile(optimizer.zero_grad, backend=backend, fullgraph=True)()


@pytest.mark.slow
def test_lightning_trains_plots_and_compiles_though_much_was_left_out() -> None:
    code = f"from {__name__} import train_plot_and_compile; train_plot_and_compile()"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr

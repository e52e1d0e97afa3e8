"""Modules that stand in for others while something is imported."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lzsweep.imports import import_lightning, stand_in
from lzsweep.tracking.client import connect
from lzsweep.tracking.delivery import deliver
from lzsweep.tracking.journal import Journal
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.runs import check_server
from tests.go.engine import PROJECT
from tests.tracking.conftest import Server, empty_database, server  # noqa: F401


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
    assert run_afresh("train_plot_and_compile()") == ""


def deliver_and_use_mlflow(uri: str, folder: str) -> None:
    """In a process that has imported nothing yet."""
    run = Path(folder)
    (run / "notes.txt").write_text("hello")
    with Journal(run) as journal:
        journal.start(experiment="hollow", name="a", params={"lr": 0.1}, tags={"a": "b"})
        journal.metrics(1, {"loss": 1.0})
        journal.artifact("notes.txt")
        journal.end("FINISHED")
    check_server(uri, "hollow")
    assert deliver(run, uri)
    run_id = run_id_of(run) or ""
    client = connect(uri)
    assert client.get_run(run_id).data.metrics == {"loss": 1.0}
    (found,) = client.search_runs([client.get_run(run_id).info.experiment_id])
    inspect.getmodule(len)  # looks at all modules
    heavy = ("pandas", "fastapi", "mlflow.models.signature", "mlflow.genai.judges")
    assert [name for name in heavy if name in sys.modules] == []

    import mlflow

    hollow = mlflow
    mlflow.set_tracking_uri(uri)
    assert mlflow.active_run() is None
    assert mlflow.get_run(run_id).info == found.info
    assert callable(mlflow.genai.make_judge)
    assert importlib.import_module("mlflow.models").infer_signature
    assert mlflow is hollow
    assert str(mlflow.__file__).endswith("mlflow/__init__.py")

    pandas: Any = importlib.import_module("pandas")
    frame = pandas.DataFrame({"a": [1.0]})
    data: Any = importlib.import_module("mlflow.data")
    assert data.from_pandas(frame, name="x").df is frame
    assert Path(client.download_artifacts(run_id, "notes.txt", folder)).read_text() == "hello"
    assert len(mlflow.search_runs([found.info.experiment_id])) == 1  # a frame that it makes


@pytest.mark.slow
@pytest.mark.server
def test_mlflows_client_delivers_though_much_was_left_out(server: Server, tmp_path: Path) -> None:  # noqa: F811
    assert run_afresh(f"deliver_and_use_mlflow({server.uri!r}, {str(tmp_path)!r})") == ""


def run_afresh(call: str) -> str:
    """Call a function of this file in a fresh process; what it said if it failed."""
    code = f"import {__name__} as here; here.{call}"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    return f"{done.returncode} {done.stderr}" if done.returncode else ""

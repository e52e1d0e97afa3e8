"""What a network costs: exact where it can be counted, plausible where a clock measures it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lzsweep.config import COSTS, best_by
from lzsweep.errors import ConfigError
from lzsweep.train.cost import Cost
from lzsweep.train.fit import train
from lzsweep.train.network import Network

MakeConfig = Callable[..., dict[str, Any]]


def logged(folder: Path) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record["values"].items():
            values.setdefault(name, {})[record["step"]] = value
    return values


class Watch(Callback):
    """Keeps the costs that each validation tells, and ends the training after some of them."""

    def __init__(self, end_after: int) -> None:
        self.seen: list[dict[str, float]] = []
        self._end_after = end_after

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logged = trainer.callback_metrics
        self.seen.append({name: float(logged[name]) for name in COSTS})

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if len(self.seen) == self._end_after:
            raise KeyError("killed")


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return 2 * 361 * inputs * outputs * kernel**2


def test_costs_are_counted_and_seen_at_every_validation(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    watch = Watch(end_after=-1)

    metrics = train(make_config(), folder=tmp_path, callbacks=[watch])

    dense = 2 * (2 * 361 * 362 + 361 * 256 + 256)
    flops = conv(18, 4, 3) + 2 * conv(4, 4, 3) + conv(4, 2, 1) + conv(4, 1, 1) + dense
    assert metrics["cost/flops"] == flops
    assert metrics["cost/parameters"] == sum(p.numel() for p in Network(1, 4).parameters())
    assert 1 < metrics["cost/positions_per_s"] < 1e9
    assert len(watch.seen) == 3
    assert all(
        {**seen, "cost/train_s": 0} == {**watch.seen[0], "cost/train_s": 0} for seen in watch.seen
    )
    seconds = [seen["cost/train_s"] for seen in watch.seen]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    values = logged(tmp_path)
    # What never changes is told once.
    assert {name: list(values[name]) for name in COSTS} == {
        "cost/parameters": [10],
        "cost/flops": [10],
        "cost/positions_per_s": [10],
        "cost/train_s": [10, 20, 30],
    }


def test_seconds_go_on_across_a_resume(make_config: MakeConfig, tmp_path: Path) -> None:
    first, second = Watch(end_after=2), Watch(end_after=-1)
    with pytest.raises(KeyError, match="killed"):
        train(make_config(), folder=tmp_path, callbacks=[first])

    train(make_config(), folder=tmp_path, callbacks=[second])

    assert len(second.seen) == 1
    assert second.seen[0]["cost/train_s"] > first.seen[1]["cost/train_s"]
    # Measured once.
    speed = "cost/positions_per_s"
    assert second.seen[0][speed] == pytest.approx(first.seen[0][speed])
    assert list(logged(tmp_path)[speed]) == [10]


def test_without_validation_the_epochs_tell(make_config: MakeConfig, tmp_path: Path) -> None:
    metrics = train(
        make_config(trainer__limit_val_batches=0, trainer__max_epochs=2), folder=tmp_path
    )

    assert metrics.keys() >= set(COSTS)
    assert list(logged(tmp_path)["cost/train_s"]) == [10, 20]


def test_to_measure_changes_no_training(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(trainer__max_epochs=1)
    train(config, folder=tmp_path / "measured")
    monkeypatch.setattr(Cost, "_measure", lambda *_: {})
    train(config, folder=tmp_path / "not")

    a, b = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("measured", "not")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("objective", "decides"),
    [
        ([("cost/flops", "minimize"), ("val/policy_top1", "maximize")], "val/policy_top1"),
        ([("cost/train_s", "minimize")], "val/loss_unweighted"),
        ([("val/policy_loss", "minimize"), ("cost/flops", "minimize")], "val/policy_loss"),
    ],
)
def test_a_cost_never_decides_which_checkpoint_is_best(
    objective: list[tuple[str, str]], decides: str
) -> None:
    pairs = [{"metric": metric, "direction": direction} for metric, direction in objective]

    assert best_by(pairs)[0] == decides


class Plain(pl.LightningModule):
    """A module of a user's own: a regression."""

    def __init__(self, example: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.example_input_array = example

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = self.layer(x) * scale
        return out

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self(batch[0]).square().mean()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss_unweighted", self(batch[0]).square().mean())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rows(pl.LightningDataModule):
    def _loader(self) -> DataLoader[Any]:
        rows = torch.arange(12.0).reshape(4, 3) / 12
        return DataLoader(TensorDataset(rows), batch_size=2)

    train_dataloader = val_dataloader = test_dataloader = _loader


def own(make_config: MakeConfig, metric: str) -> dict[str, Any]:
    return make_config(
        module={"_target_": f"{__name__}.Plain"},
        data={"_target_": f"{__name__}.Rows"},
        objective={"metric": metric, "direction": "minimize"},
        trainer__max_epochs=1,
    )


def test_another_module_has_the_costs_that_need_no_example(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    metrics = train(own(make_config, "cost/parameters"), folder=tmp_path)

    assert metrics["cost/parameters"] == 8
    assert metrics["cost/train_s"] > 0
    assert metrics.keys() & set(COSTS) == {"cost/parameters", "cost/train_s"}


def test_another_module_without_an_example_cannot_be_judged_by_flops(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^cost/flops is measured .* Plain has none: set it"):
        train(own(make_config, "cost/flops"), folder=tmp_path)


def with_example(form: str) -> Plain:
    x = torch.zeros(5, 3)
    forms = {"tensor": x, "arguments": (x, 2.0), "keywords": {"x": x, "scale": 2.0}}
    return Plain(forms[form])


@pytest.mark.parametrize("form", ["tensor", "arguments", "keywords"])
def test_an_example_may_be_a_batch_or_the_arguments_of_forward(
    make_config: MakeConfig, tmp_path: Path, form: str
) -> None:
    config = own(make_config, "cost/flops")
    config["module"] = {"_target_": f"{__name__}.with_example", "form": form}

    metrics = train(config, folder=tmp_path)

    assert metrics["cost/flops"] == 2 * 3 * 2
    assert metrics["cost/positions_per_s"] > 1

"""Whole trainings: they learn, they repeat themselves, and they resume as if nothing happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lzsweep.config import COSTS, MEANS
from lzsweep.errors import DataError
from lzsweep.train.checkpoint import Checkpoints
from lzsweep.train.fit import rehearse, train
from lzsweep.train.module import NonFiniteLossError
from tests.train.conftest import repeatable

MakeConfig = Callable[..., dict[str, Any]]
ADAM = {"_target_": "torch.optim.AdamW", "_partial_": True, "weight_decay": 0.0}
EMA = {"_target_": "lzsweep.train.average.Ema", "decay": 0.9, "every_n_steps": 2}
SWA = {"_target_": "lzsweep.train.average.Swa", "start": 0.5}


class Killed(Exception):
    """Stands for the end of the process."""


class Kill(Callback):
    """Ends the training without warning after a number of steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self._step:
            raise Killed


class KillInValidation(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_validation_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self._step:
            raise Killed


class Stop(Callback):
    """Ends the training at the first chance to save it from a step on."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._try(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._try(trainer)

    def _try(self, trainer: pl.Trainer) -> None:
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, Checkpoints)
        if trainer.global_step >= self._step and checkpoints.save_last(trainer):
            raise Killed


def logged(folder: Path) -> dict[tuple[str, int], float]:
    values: dict[tuple[str, int], float] = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record["values"].items():
            assert (name, record["step"]) not in values, "a step was logged twice"
            values[name, record["step"]] = value
    return values


def last(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint


def same_weights(a: dict[str, Any], b: dict[str, Any]) -> bool:
    parts = ("state_dict", "current_model_state", "averaging_state")  # the latter of averages
    return all(
        torch.equal(a[part][name], b[part][name])
        for part in parts
        if part in a or part in b
        for name in a[part].keys() | b[part].keys()
    )


def test_learns_far_above_chance(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        data__batch_size=128,
        module__network__filters=8,
        module__lr=0.05,
        trainer__max_epochs=1,
        trainer__limit_train_batches=150,
        trainer__limit_val_batches=10,
        trainer__limit_test_batches=10,
    )

    metrics = train(config, folder=tmp_path)

    assert metrics["val/policy_top1"] > 20 / 362
    assert metrics["test/policy_top1"] > 20 / 362
    assert metrics["val/policy_loss"] < 5.0


def test_gives_and_logs_every_metric(make_config: MakeConfig, tmp_path: Path) -> None:
    metrics = train(make_config(), folder=tmp_path)

    names = {f"{stage}/{name}" for stage in ("train", "val", "test") for name in MEANS}
    assert metrics.keys() == names | set(COSTS)
    steps = {
        stage: sorted({s for name, s in logged(tmp_path) if name.startswith(stage)})
        for stage in ("train", "val", "test")
    }
    # Every fourth optimizer step, and what is left of an epoch at its end.
    assert steps["train"] == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    assert steps["val"] == [10, 20, 30]
    assert steps["test"] == [30]


def test_the_same_seed_gives_the_same_bits(make_config: MakeConfig, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]

    first, second = (train(make_config(), folder=folder) for folder in folders[:2])
    third = train(make_config(seed=2, data__seed=2), folder=folders[2])

    assert repeatable(first) == repeatable(second)
    assert repeatable(logged(folders[0])) == repeatable(logged(folders[1]))
    assert same_weights(last(folders[0]), last(folders[1]))
    assert first["val/loss"] != third["val/loss"]


RESUMES = [
    ("between validations", {}, [Kill(15), Kill(27)]),
    ("in a validation", {}, [KillInValidation(20)]),
    (
        "validations inside epochs",
        {"trainer__max_epochs": -1, "trainer__max_steps": 25, "trainer__val_check_interval": 4},
        [Kill(7), Kill(19)],
    ),
    (
        "validations across epochs",
        {
            "trainer__max_steps": 27,
            "trainer__val_check_interval": 8,
            "trainer__check_val_every_n_epoch": None,
        },
        [Kill(11), KillInValidation(16), Kill(26)],
    ),
    ("saved anywhere", {"trainer__log_every_n_steps": 1}, [Stop(1), Stop(10), Stop(13)]),
    ("saved before a validation", {"trainer__val_check_interval": 5}, [Stop(4), Stop(5)]),
    ("loader processes", {"data__num_workers": 1}, [Kill(12), Stop(13)]),
    ("summed gradients", {"trainer__accumulate_grad_batches": 3}, [Stop(2), Kill(7)]),
    (
        "another optimizer and schedule",
        {
            "module__optimizer": ADAM,
            "module__schedule": {
                "_target_": "lzsweep.train.schedule.cosine",
                "_partial_": True,
                "warmup_steps": 5,
            },
        },
        [Stop(6), Kill(17)],
    ),
    (
        "one cycle of rate and momentum",
        {
            "module__schedule": {
                "_target_": "lzsweep.train.schedule.one_cycle",
                "_partial_": True,
            },
        },
        [Stop(6), Kill(17)],
    ),
    ("moving average", {"callbacks": {"ema": EMA}}, [Stop(6), Kill(17), KillInValidation(30)]),
    (
        "mean of the last steps",
        {"callbacks": {"swa": SWA}, "trainer__accumulate_grad_batches": 2},
        [Stop(4), Kill(9), Stop(13)],
    ),
]


@pytest.mark.parametrize(
    ("changes", "ends"),
    [case[1:] for case in RESUMES],
    ids=[case[0] for case in RESUMES],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any], ends: list[Callback]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(make_config(**changes), folder=whole)

    for end in ends:
        with pytest.raises(Killed):
            train(make_config(**changes), folder=parts, callbacks=[end])
    metrics = train(make_config(**changes), folder=parts)

    assert repeatable(metrics) == repeatable(expected)
    assert repeatable(logged(parts)) == repeatable(logged(whole))
    assert logged(parts).keys() == logged(whole).keys()
    a, b = last(whole), last(parts)
    assert same_weights(a, b)
    assert a["global_step"] == b["global_step"]
    assert a["lr_schedulers"] == b["lr_schedulers"]


def test_a_finished_training_is_not_trained_again(make_config: MakeConfig, tmp_path: Path) -> None:
    first = train(make_config(), folder=tmp_path)
    before = (tmp_path / "checkpoints/last.ckpt").stat().st_mtime_ns

    again = train(make_config(), folder=tmp_path)

    assert again == first
    assert (tmp_path / "checkpoints/last.ckpt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("metric", "direction", "choose"),
    [("val/loss_unweighted", "minimize", min), ("val/policy_loss", "maximize", max)],
)
def test_best_is_the_best_validation(
    make_config: MakeConfig,
    tmp_path: Path,
    metric: str,
    direction: str,
    choose: Callable[..., Any],
) -> None:
    objective = [
        {"metric": metric, "direction": direction},
        {"metric": "x", "direction": "maximize"},
    ]
    metrics = train(make_config(objective=objective), folder=tmp_path)

    values = {step: v for (name, step), v in logged(tmp_path).items() if name == metric}
    step = choose(values, key=values.__getitem__)
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == step
    assert metrics[metric] == pytest.approx(values[step])
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_checkpoint_tells_its_network(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(trainer__max_epochs=1), folder=tmp_path)

    shape = {"blocks": 1, "filters": 4, "in_channels": 18, "board_size": 19}
    assert last(tmp_path)["network"] == shape


def test_without_validation_the_last_weights_are_tested(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    metrics = train(make_config(trainer__limit_val_batches=0), folder=tmp_path)

    assert "test/loss" in metrics
    assert "val/loss" not in metrics
    assert last(tmp_path)["global_step"] == 30


def test_an_early_stop_is_a_callback(make_config: MakeConfig, tmp_path: Path) -> None:
    stop = {
        "_target_": "pytorch_lightning.callbacks.EarlyStopping",
        "monitor": "val/loss_unweighted",
        "patience": 1,
        "min_delta": 100.0,
    }

    train(make_config(callbacks={"early_stopping": stop}), folder=tmp_path)

    assert last(tmp_path)["global_step"] == 20


def test_a_loss_that_blows_up_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(module__lr=1e30)

    with pytest.raises(
        NonFiniteLossError, match=r"train/\w+ must be finite, but is .* at step 4 "
    ):
        train(config, folder=tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_missing_data_is_told_in_one_line(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train(make_config(data__path="nowhere"), folder=tmp_path)


def test_other_loggers_get_the_run_folder(make_config: MakeConfig, tmp_path: Path) -> None:
    logger = {
        "_target_": "pytorch_lightning.loggers.CSVLogger",
        "name": None,
        "version": "",
    }

    train(make_config(logger=logger, trainer__max_epochs=1), folder=tmp_path)

    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert "val/policy_top1" in header
    assert not (tmp_path / "journal.jsonl").exists()


@pytest.mark.parametrize("logger", [None, {}])
def test_no_logger_is_no_trouble(
    make_config: MakeConfig, tmp_path: Path, logger: dict[str, str] | None
) -> None:
    metrics = train(make_config(logger=logger, trainer__max_epochs=1), folder=tmp_path)

    assert "test/loss" in metrics
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints"}


def test_lightnings_summary_looks_through_the_network(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(trainer__enable_model_summary=True, trainer__max_epochs=1)

    train(config, folder=tmp_path)

    assert "Total FLOPs: 1.4 M" in capsys.readouterr().out


def test_nothing_needless_is_printed(
    make_config: MakeConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    config = make_config(trainer__max_epochs=1)
    with caplog.at_level("INFO"), pytest.raises(Killed):
        train(config, folder=tmp_path, callbacks=[Kill(5)])
    train(config, folder=tmp_path)

    assert not [r for r in caplog.records if "Tip" in r.message or "available" in r.message]
    assert not [str(w.message) for w in recwarn]


def test_half_precision_keeps_the_weights_whole(make_config: MakeConfig, tmp_path: Path) -> None:
    metrics = train(make_config(precision="bf16-mixed", trainer__max_epochs=1), folder=tmp_path)

    assert 0 < metrics["val/policy_loss"] < 10
    assert {weight.dtype for weight in last(tmp_path)["state_dict"].values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "ddp_fork"])
def test_two_devices_train_one_network(
    make_config: MakeConfig, tmp_path: Path, strategy: str
) -> None:
    config = make_config(
        trainer__strategy=strategy, trainer__devices=2, trainer__use_distributed_sampler=False
    )

    metrics = train(config, folder=tmp_path)

    # One of them logged, and what came back is of the best checkpoint.
    values = logged(tmp_path)
    validations = {s: v for (name, s), v in values.items() if name == "val/loss_unweighted"}
    assert sorted(validations) == [10, 20, 30]
    best = min(validations, key=validations.__getitem__)
    assert metrics["val/loss_unweighted"] == pytest.approx(validations[best])
    # Lightning's own launcher tests in fresh processes, which know no step but the checkpoint's.
    (tested,) = (value for (name, _), value in values.items() if name == "test/loss")
    assert metrics["test/loss"] == pytest.approx(tested)


@pytest.mark.slow
def test_compilation_changes_neither_results_nor_names(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    changes = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 3}
    plain, compiled = (
        train(
            make_config(module__compile=compile, module__network__blocks=0, **changes),
            folder=tmp_path / str(compile),
        )
        for compile in (False, True)
    )

    assert repeatable(compiled) == pytest.approx(repeatable(plain), rel=1e-3)
    assert (
        last(tmp_path / "True")["state_dict"].keys()
        == last(tmp_path / "False")["state_dict"].keys()
    )


def test_a_rehearsal_changes_no_training(make_config: MakeConfig, tmp_path: Path) -> None:
    first = train(make_config(), folder=tmp_path / "first")
    rehearse()
    second = train(make_config(), folder=tmp_path / "second")
    times = {"cost/train_s", "cost/positions_per_s"}
    assert {k: v for k, v in first.items() if k not in times} == {
        k: v for k, v in second.items() if k not in times
    }

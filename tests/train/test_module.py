from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lzsweep.config import MEANS
from lzsweep.errors import ConfigError
from lzsweep.train.decode import Batch
from lzsweep.train.module import LeelaZero
from lzsweep.train.network import Network
from lzsweep.train.schedule import constant

LOSS = {"policy": 1.0, "value": 1.0, "l2": 1e-4}


def make_module(network: nn.Module | None = None, **options: Any) -> LeelaZero:
    return LeelaZero(
        network or Network(1, 4),  # type: ignore[arg-type]
        **{
            "loss": LOSS,
            "optimizer": partial(torch.optim.SGD, momentum=0.9),
            "schedule": constant,
            "lr": 0.1,
            **options,
        },
    )


def make_batch(n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(n, 18, 19, 19, generator=generator)
    move = torch.randint(0, 362, (n,), generator=generator)
    return Batch(planes, move, torch.tensor([1.0, -1.0] * (n // 2)))


def metrics_of(module: LeelaZero, stage: str) -> dict[str, float]:
    return dict(zip(MEANS, module._tally(stage).compute().tolist(), strict=True))


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    module = make_module(loss={"policy": 0.5, "value": 3.0, "l2": 0.01})
    batch = make_batch()

    loss = module.training_step(batch, 0)

    logits, value = module(batch.planes)
    entropy = F.cross_entropy(logits, batch.move)
    error = ((value - batch.value) ** 2).mean()
    squares = sum(
        (p**2).sum()
        for p in module.network.parameters()
        if p.dim() > 1  # betas and biases are vectors
    )
    expected = 0.5 * entropy + 3.0 * error + 0.01 * squares / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0.0)
    seen = metrics_of(module, "train")
    assert seen["loss"] == pytest.approx(loss.item())
    assert seen["policy_loss"] == pytest.approx(entropy.item())
    assert seen["value_mse"] == pytest.approx(error.item())
    assert seen["loss_unweighted"] == pytest.approx((entropy + error).item())


def test_l2_pulls_each_weight_towards_zero_and_no_bias() -> None:
    module = make_module(loss={"policy": 0.0, "value": 0.0, "l2": 0.1})

    module.training_step(make_batch(), 0).backward()  # type: ignore[no-untyped-call]

    for parameter in module.network.parameters():
        expected = 0.1 * parameter if parameter.dim() > 1 else torch.zeros_like(parameter)
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected.detach())


class Fixed(nn.Module):
    """A network that always says the same."""

    def __init__(self, logits: Tensor, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.answer = (logits, value)

    def decayed_weights(self) -> list[Tensor]:
        return [self.weight]

    def planes_shape(self) -> tuple[int, int, int]:
        return 18, 19, 19

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        return self.answer


def test_a_move_counts_among_the_first_one_or_five() -> None:
    logits = torch.zeros(4, 362)
    logits[:, :6] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    module = make_module(Fixed(logits, torch.tensor([1.0, 1.0, 0.0, -0.5])))
    batch = Batch(
        torch.zeros(4, 18, 19, 19), torch.tensor([0, 4, 5, 100]), torch.tensor([1.0, -1, 1, -1])
    )

    module.validation_step(batch, 0)

    seen = metrics_of(module, "val")
    assert seen["policy_top1"] == 0.25
    assert seen["policy_top5"] == 0.5
    assert seen["value_mse"] == pytest.approx((0 + 4 + 1 + 0.25) / 4)


def test_metrics_are_means_over_positions_not_batches() -> None:
    module = make_module().eval()
    whole = make_batch(6)

    with torch.no_grad():
        for part in (slice(0, 4), slice(4, 6)):
            module.validation_step(Batch(*(column[part] for column in whole)), 0)
        module.test_step(whole, 0)

    assert metrics_of(module, "val") == pytest.approx(metrics_of(module, "test"), rel=1e-4)


def test_distributions_are_targets_too() -> None:
    module = make_module(loss={"policy": 1.0, "value": 0.0, "l2": 0.0}).eval()
    batch = make_batch()
    soft = batch._replace(move=F.one_hot(batch.move, 362).float())

    assert torch.allclose(module.training_step(soft, 0), module.training_step(batch, 0))


@pytest.mark.parametrize("is_soft", [False, True])
def test_labels_are_smoothed_in_the_loss_of_training_alone(is_soft: bool) -> None:
    module = make_module(loss={**LOSS, "l2": 0.0, "label_smoothing": 0.2})
    batch = make_batch()
    one_hot = F.one_hot(batch.move, 362).float()
    batch = batch._replace(move=one_hot) if is_soft else batch

    loss = module.training_step(batch, 0)
    module.validation_step(batch, 0)

    logs = F.log_softmax(module(batch.planes)[0], dim=1)
    smooth = -((0.8 * one_hot + 0.2 / 362) * logs).sum(1).mean().item()
    train, val = metrics_of(module, "train"), metrics_of(module, "val")
    assert loss.item() == pytest.approx(smooth + train["value_mse"], rel=1e-4)
    assert train["loss"] == pytest.approx(loss.item())
    plain = -(one_hot * logs).sum(1).mean().item()
    for seen in (train, val):
        assert seen["policy_loss"] == pytest.approx(plain, rel=1e-4)
        assert seen["loss_unweighted"] == pytest.approx(plain + seen["value_mse"], rel=1e-4)
    assert val["loss"] == pytest.approx(val["loss_unweighted"])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_refuses_an_impossible_smoothing(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="`0 <= label_smoothing < 1` must hold"):
        make_module(loss={**LOSS, "label_smoothing": smoothing})


@pytest.mark.parametrize(
    "loss", [{"policy": 1.0}, {**LOSS, "pollicy": 1.0}, {**LOSS, "value": -1.0}, {}]
)
def test_refuses_other_loss_weights(loss: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="loss must give policy, value, l2, none negative"):
        make_module(loss=loss)


@pytest.mark.parametrize("lr", [0.0, -1.0, math.inf, math.nan])
def test_refuses_an_impossible_lr(lr: float) -> None:
    with pytest.raises(ConfigError, match="`lr > 0` must hold, but got lr="):
        make_module(lr=lr)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)loss must give .*`lr > 0`"):
        make_module(loss={}, lr=-1.0)


def test_the_network_lies_channels_last() -> None:
    weight = make_module().network.stem.conv.weight

    assert weight.is_contiguous(memory_format=torch.channels_last)

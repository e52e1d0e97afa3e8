from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lzsweep.train.network import NORM_EPS, BetaNorm, Network


def leela_zero_parameters(blocks: int, filters: int) -> int:
    """Count from the engine's weights file: convolutions, betas, dense weights and biases."""
    tower = 18 * 9 * filters + filters + blocks * 2 * (9 * filters**2 + filters)
    policy = 2 * filters + 2 + 722 * 362 + 362
    value = filters + 1 + 361 * 256 + 256 + 256 + 1
    return tower + policy + value


@pytest.mark.parametrize(("blocks", "filters"), [(0, 1), (2, 16), (8, 32), (20, 128)])
def test_has_exactly_the_parameters_of_the_weights_file(blocks: int, filters: int) -> None:
    parameters = Network(blocks, filters).parameters()
    assert sum(p.numel() for p in parameters) == leela_zero_parameters(blocks, filters)


def test_gives_a_logit_for_each_move_and_a_value_in_range() -> None:
    logits, value = Network(1, 4)(torch.rand(3, 18, 19, 19))

    assert logits.shape == (3, 362)
    assert value.shape == (3,)
    assert (value.abs() < 1).all()


def test_works_on_another_board() -> None:
    logits, _ = Network(1, 4, in_channels=5, board_size=9)(torch.rand(2, 5, 9, 9))

    assert logits.shape == (2, 82)


@pytest.mark.parametrize("training", [True, False])
def test_norm_is_batch_normalisation_with_a_shift_and_no_gain(training: bool) -> None:
    x = torch.randn(8, 3, 5, 5) * 2 + 1
    norm = BetaNorm(3).train(training)
    with torch.no_grad():
        norm.beta.copy_(torch.tensor([0.5, -1.0, 2.0]))
        norm.mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
        norm.var.copy_(torch.tensor([2.0, 0.5, 1.5]))
    mean = x.mean((0, 2, 3)) if training else norm.mean.clone()
    var = x.var((0, 2, 3), unbiased=False) if training else norm.var.clone()

    y = norm(x)

    column = (slice(None), None, None)
    expected = (x - mean[column]) / (var[column] + NORM_EPS).sqrt() + norm.beta[column]
    torch.testing.assert_close(y, expected)


def test_only_convolutions_and_dense_weights_are_decayed() -> None:
    network = Network(2, 4)

    decayed = {id(weight) for weight in network.decayed_weights()}

    names = {name for name, p in network.named_parameters() if id(p) in decayed}
    assert names == {
        name
        for name, _ in network.named_parameters()
        if name.endswith("weight") and "norm" not in name
    }
    # Stem, two convolutions a block, two heads' convolutions, three dense layers.
    assert len(names) == 1 + 2 * 2 + 2 + 3


def test_starts_without_strong_opinions() -> None:
    torch.manual_seed(0)
    logits, value = Network(2, 16)((torch.rand(64, 18, 19, 19) < 0.2).float())

    assert abs(nn.functional.cross_entropy(logits, torch.arange(64)) - math.log(362)) < 1.5
    assert value.abs().mean() < 0.5


def test_dense_layers_stay_in_float32_under_autocast() -> None:
    network = Network(1, 4).to(memory_format=torch.channels_last)

    with torch.autocast("cpu", torch.bfloat16):
        logits, value = network(torch.rand(2, 18, 19, 19))

    assert logits.dtype == value.dtype == torch.float32


def test_memory_format_changes_no_result() -> None:
    torch.manual_seed(0)
    network = Network(2, 8)
    planes = torch.rand(4, 18, 19, 19)

    expected = network(planes)
    network.to(memory_format=torch.channels_last)

    for got, wanted in zip(network(planes), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(-1, 4), (1, 0)])
def test_refuses_impossible_sizes(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"`blocks >= 0`, `filters >= 1`.*blocks=-?\d"):
        Network(*sizes)

"""A network's output in float64, straight from the definition, to hold others against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lzsweep.go.board import BOARD_SIZE, N_POINTS
from lzsweep.go.weights import EPSILON, Array, Convolution, Dense, Weights, fold_batch_norm

Wide = npt.NDArray[np.float64]


def random_weights(blocks: int, filters: int, *, version: int = 1, seed: int = 0) -> Weights:
    """A net that tells positions apart, with batch normalisation far from mean 0, variance 1."""
    rng = np.random.default_rng(seed)

    def convolution(out: int, inner: int, size: int) -> Convolution:
        fan_in = inner * size * size
        variance = 10.0 ** rng.uniform(-6, 1, out)
        # The weights' size goes with the deviation, so that the sums stay of order one.
        deviation = np.sqrt(variance + EPSILON)
        weight = rng.normal(size=(out, inner, size, size)) / np.sqrt(fan_in)
        return fold_batch_norm(
            weight * deviation[:, None, None, None],
            mean=rng.normal(size=out) * deviation,
            variance=variance,
            beta=rng.normal(size=out),
            gamma=rng.uniform(0.5, 2, out),
        )

    def dense(out: int, inner: int, gain: float = 1.0) -> Dense:
        weight = rng.normal(size=(out, inner)) * gain / np.sqrt(inner)
        bias = rng.normal(size=out) / 10
        return Dense(weight.astype(np.float32), bias.astype(np.float32))

    return Weights(
        version=version,
        input=convolution(filters, 18, 3),
        tower=tuple(convolution(filters, filters, 3) for _ in range(2 * blocks)),
        policy=convolution(2, filters, 1),
        policy_dense=dense(362, 2 * N_POINTS),
        value=convolution(1, filters, 1),
        value_hidden=dense(256, N_POINTS, gain=5.0),
        value_output=dense(1, 256),
    )


def evaluate(weights: Weights, planes: npt.ArrayLike) -> tuple[Wide, Wide]:
    """The net's output for `[n, 18, 361]` planes.

    Returns:
        `[n, 362]` move probabilities and `[n]` values in -1 to 1, as the value head gives them.
    """
    x = _layer(weights.input, np.asarray(planes, np.float64))
    x = np.maximum(x, 0)
    for first, second in zip(weights.tower[::2], weights.tower[1::2], strict=True):
        x = np.maximum(x + _layer(second, np.maximum(_layer(first, x), 0)), 0)
    policy = np.maximum(_layer(weights.policy, x), 0).reshape(len(x), -1)
    logits = _dense(weights.policy_dense, policy)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    value = np.maximum(_layer(weights.value, x), 0).reshape(len(x), -1)
    hidden = np.maximum(_dense(weights.value_hidden, value), 0)
    output = np.tanh(_dense(weights.value_output, hidden))[:, 0]
    return exponentials / exponentials.sum(axis=1, keepdims=True), output


def _layer(layer: Convolution, x: Wide) -> Wide:
    """Convolve `[n, in, 361]` and normalise: `[n, out, 361]`."""
    out, inner, size, _ = layer.weight.shape
    board = x.reshape(len(x), inner, BOARD_SIZE, BOARD_SIZE)
    edge = size // 2
    padded = np.pad(board, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    total: Wide = np.zeros((len(x), out, BOARD_SIZE, BOARD_SIZE))
    for dy in range(size):
        for dx in range(size):
            window = padded[:, :, dy : dy + BOARD_SIZE, dx : dx + BOARD_SIZE]
            total += np.einsum("oi,niyx->noyx", _wide(layer.weight[:, :, dy, dx]), window)
    spread = np.sqrt(_wide(layer.variance) + EPSILON)
    shift = _wide(layer.bias) - _wide(layer.mean)
    normal = (total + shift[:, None, None]) / spread[:, None, None]
    return normal.reshape(len(x), out, N_POINTS)


def _dense(layer: Dense, x: Wide) -> Wide:
    result: Wide = x @ _wide(layer.weight).T + _wide(layer.bias)
    return result


def _wide(tensor: Array) -> Wide:
    return tensor.astype(np.float64)

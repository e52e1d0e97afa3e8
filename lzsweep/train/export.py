"""Our networks as Leela Zero weights, and weights as our networks.

A `Network`'s state has a convolution's `weight` and its normalisation's `beta`, `mean` and `var`;
the engine's file hides the beta in a bias, `beta * sqrt(var + 1e-5)`. What the network computes
is the same; a beta that went through a file differs from the first by the last bit at most.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lzsweep.config import BEST_CHECKPOINT, LAST_CHECKPOINT, WEIGHTS_FILE
from lzsweep.errors import DataError
from lzsweep.go.board import BOARD_SIZE
from lzsweep.go.weights import (
    INPUT_PLANES,
    Array,
    Convolution,
    Dense,
    Weights,
    fold_batch_norm,
    read_weights,
    write_weights,
)
from lzsweep.train.network import Network
from lzsweep.train.source import check_size, find_source, is_checkpoint

_PREFIX = "network."  # where a LeelaZero module's state has its network
_SIZES = {"blocks", "filters", "board_size", "in_channels"}

State = Mapping[str, Tensor]

_logger = logging.getLogger(__name__)


class OtherModuleError(DataError):
    """A checkpoint has no network of ours."""


def to_weights(state: State) -> Weights:
    """Fold a network's state into Leela Zero weights.

    Args:
        state: the `state_dict` of a `Network` of 18 planes and 19x19 points.

    Raises:
        OtherModuleError: it is the state of something else.
        DataError: a tensor holds a number that is not finite, or has another shape.
    """
    n_blocks = len({name.split(".")[1] for name in state if name.startswith("tower.")})
    tower = [
        _convolution(state, f"tower.{block}.{part}")
        for block in range(n_blocks)
        for part in ("first", "second")
    ]
    weights = Weights(
        version=1,
        input=_convolution(state, "stem"),
        tower=tuple(tower),
        policy=_convolution(state, "policy_conv"),
        policy_dense=_dense(state, "policy_dense"),
        value=_convolution(state, "value_conv"),
        value_hidden=_dense(state, "value_hidden"),
        value_output=_dense(state, "value_out"),
    )
    # A network with more to it is not what the file would say.
    if more := sorted(state.keys() - to_state(weights).keys()):
        raise OtherModuleError(f"the engine's networks have nothing like {more[0]}")
    return weights


def to_state(weights: Weights) -> dict[str, Tensor]:
    """Unfold weights into the state of `Network(weights.blocks, weights.filters)`.

    Raises:
        DataError: the weights' value is black's; our networks' is the side to move's.
    """
    if weights.version != 1:
        raise DataError(
            f"weights must be of version 1, but these are of version {weights.version}: their"
            " value is black's chance, ours that of the side to move"
        )
    convolutions = {"stem": weights.input}
    for number, layer in enumerate(weights.tower):
        convolutions[f"tower.{number // 2}.{('first', 'second')[number % 2]}"] = layer
    convolutions |= {"policy_conv": weights.policy, "value_conv": weights.value}
    dense = {
        "policy_dense": weights.policy_dense,
        "value_hidden": weights.value_hidden,
        "value_out": weights.value_output,
    }
    arrays: dict[str, Array] = {}
    for name, layer in convolutions.items():
        arrays[f"{name}.conv.weight"] = layer.weight
        arrays[f"{name}.norm.beta"] = layer.beta
        arrays[f"{name}.norm.mean"] = layer.mean
        arrays[f"{name}.norm.var"] = layer.variance
    for name, linear in dense.items():
        arrays[f"{name}.weight"] = linear.weight
        arrays[f"{name}.bias"] = linear.bias
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def read_checkpoint(path: Path) -> Weights:
    """The network of a checkpoint of ours, as weights.

    Raises:
        DataError: it is no checkpoint, or one of another module, or holds what is not finite.
    """
    shape, state = _open_checkpoint(path)
    size = (shape["board_size"], shape["in_channels"])
    if size != (BOARD_SIZE, INPUT_PLANES):
        raise DataError(
            f"the engine reads networks of {BOARD_SIZE}x{BOARD_SIZE} points and {INPUT_PLANES}"
            f" planes, but {path} has {size[0]}x{size[0]} points and {size[1]} planes"
        )
    try:
        return to_weights(state)
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error


def start_from(network: Network, path: Path | str) -> None:
    """Give a network the parameters of a weights file, a checkpoint or a run's best checkpoint.

    Raises:
        DataError: what is there cannot be read.
        ConfigError: it is a network of another size.
    """
    source = find_source(path)
    state: State
    if is_checkpoint(source):
        shape, state = _open_checkpoint(source)
        there = (shape["blocks"], shape["filters"])
    else:
        weights = read_weights(source)
        there = (weights.blocks, weights.filters)
        try:
            state = to_state(weights)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
    check_size(source, there=there, wanted=(network.blocks, network.filters))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise DataError(f"{source} must fit the network, but does not: {lines[-1]}") from error


def initialise(module: LightningModule) -> None:
    """At the start of a training: let the module's network begin from its `init_from`."""
    network = getattr(module, "network", None)
    if isinstance(network, Network) and network.init_from:
        start_from(network, network.init_from)


def publish(folder: Path) -> None:
    """Write the best (else the last) network of a run's folder as weights into it.

    Nothing happens where no checkpoint has a network of ours. A training is never lost over it:
    what goes wrong is a warning.
    """
    saved = [folder / name for name in (BEST_CHECKPOINT, LAST_CHECKPOINT)]
    checkpoint = next((path for path in saved if path.exists()), None)
    if checkpoint is None:
        return
    try:
        weights = read_checkpoint(checkpoint)
        write_weights(folder / WEIGHTS_FILE, weights)
    except OtherModuleError:
        return
    except DataError as error:
        _logger.warning("no weights for the engine: %s", error)


def _open_checkpoint(path: Path) -> tuple[dict[str, int], State]:
    """The network's shape and state in a checkpoint."""
    if not zipfile.is_zipfile(path):  # torch would say so in words for programmers
        raise DataError(
            f"{path} must be a checkpoint, but is damaged or none: it does not end as one; name"
            " another one of the run's checkpoints"
        )
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # Whatever a file that is no checkpoint makes torch raise.
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        why = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path} must be a checkpoint, but is damaged or none: {why}") from error
    content = checkpoint if isinstance(checkpoint, dict) else {}
    shape, whole = content.get("network"), content.get("state_dict")
    if not isinstance(whole, dict) or not isinstance(shape, dict) or not shape.keys() >= _SIZES:
        raise OtherModuleError(
            f"{path} must be a checkpoint of lzsweep.train.module.LeelaZero, but is one of another"
            " module: it names no network"
        )
    state = {
        name.removeprefix(_PREFIX): value
        for name, value in whole.items()
        if name.startswith(_PREFIX)
    }
    return shape, state


def _array(state: State, name: str) -> Array:
    if name not in state:
        raise OtherModuleError(f"a network of ours must have {name}, but this one has not")
    array: Array = state[name].detach().to("cpu", torch.float32).contiguous().numpy()
    return array


def _convolution(state: State, name: str) -> Convolution:
    return fold_batch_norm(
        _array(state, f"{name}.conv.weight"),
        mean=_array(state, f"{name}.norm.mean"),
        variance=_array(state, f"{name}.norm.var"),
        beta=_array(state, f"{name}.norm.beta"),
    )


def _dense(state: State, name: str) -> Dense:
    return Dense(_array(state, f"{name}.weight"), _array(state, f"{name}.bias"))

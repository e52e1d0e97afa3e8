"""A trained network as a model of MLflow's registry: planes in, policy and value out.

`mlflow.pyfunc.load_model("models:/NAME@champion")` imports this module and gets a `Player`, so
whoever loads it has lzsweep installed. The model's folder holds `data/weights.txt.gz`, which the
engine plays with, and `data/config.yaml`, which trains it again. Nothing in it is pickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lzsweep.config import WEIGHTS_FILE
from lzsweep.errors import DataError
from lzsweep.go.board import BLACK, BOARD_SIZE, N_MOVES, N_POINTS, WHITE, Board, parse_move
from lzsweep.go.chunks import N_HISTORY
from lzsweep.go.weights import Weights, read_weights, write_weights
from lzsweep.train.decode import N_PLANES
from lzsweep.train.export import to_state
from lzsweep.train.network import Network

CONFIG_NAME = "config.yaml"
_BATCH = 256
_SHAPE = (N_PLANES, BOARD_SIZE, BOARD_SIZE)

Floats = npt.NDArray[np.float32]


class Player:
    """Answers boards with the network of a weights file."""

    def __init__(self, weights: Weights) -> None:
        self._network = Network(weights.blocks, weights.filters)
        self._network.load_state_dict(to_state(weights))
        self._network.eval()

    def predict(
        self, planes: npt.ArrayLike, params: Mapping[str, Any] | None = None
    ) -> dict[str, Floats]:
        """Evaluate boards.

        Args:
            planes: `[B, 18, 19, 19]` as `planes_after` makes them.
            params: MLflow's; there are none.

        Returns:
            `policy`, `[B, 362]`: the probability of each move, point `y * 19 + x` counted from
            A1, the last one pass. `value`, `[B]`: the result that the side to move expects, from
            -1 (a loss) to 1; the engine's win rate is `(1 + value) / 2`.

        Raises:
            DataError: the boards have another shape.
        """
        del params
        array = np.asarray(planes, np.float32)
        if array.shape[1:] != _SHAPE:
            raise DataError(
                f"boards must have the shape {('B', *_SHAPE)}, but got {array.shape};"
                " lzsweep.train.player.planes_after makes them of moves"
            )
        policies, values = [], []
        with torch.no_grad():
            for start in range(0, len(array), _BATCH):
                part = np.ascontiguousarray(array[start : start + _BATCH])
                logits, value = self._network(torch.from_numpy(part))
                policies.append(logits.softmax(1).numpy())
                values.append(value.numpy())
        return {
            "policy": np.concatenate(policies or [np.empty((0, N_MOVES), np.float32)]),
            "value": np.concatenate(values or [np.empty(0, np.float32)]),
        }


def planes_after(moves: Sequence[str]) -> Floats:
    """The planes of the position after moves from the empty board, black first.

    Args:
        moves: as `Q16` or `pass`.

    Returns:
        `[18, 19, 19]`; row 0 is the board's first row, column 0 is A.

    Raises:
        ValueError: a move has no such form, or is illegal.
    """
    board, colour = Board(), BLACK
    boards = [(board.black, board.white)]
    for move in moves:
        board.play(parse_move(move), colour)
        boards.append((board.black, board.white))
        colour = BLACK + WHITE - colour
    planes = np.zeros((N_PLANES, N_POINTS), np.float32)
    for age, stones in enumerate(boards[: -N_HISTORY - 1 : -1]):
        planes[age] = _bits(stones[colour])
        planes[N_HISTORY + age] = _bits(stones[1 - colour])
    planes[2 * N_HISTORY + colour] = 1
    return planes.reshape(_SHAPE)


def _bits(stones: int) -> npt.NDArray[np.uint8]:
    packed = np.frombuffer(stones.to_bytes(N_POINTS // 8 + 1, "little"), np.uint8)
    return np.unpackbits(packed, bitorder="little")[:N_POINTS]


def save_model(folder: Path, weights: Weights, config: Path | None) -> None:
    """Write a network as a model that MLflow can register and load.

    Args:
        folder: made here.
        weights: the network.
        config: the YAML of its training, if there is one.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model as save
    from mlflow.types import Schema, TensorSpec

    data = folder.with_name(f"{folder.name}-data")
    data.mkdir(parents=True)
    write_weights(data / WEIGHTS_FILE, weights)
    if config is not None:
        shutil.copy(config, data / CONFIG_NAME)
    single = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(single, (-1, *_SHAPE))]),
        outputs=Schema(
            [TensorSpec(single, (-1, N_MOVES), "policy"), TensorSpec(single, (-1,), "value")]
        ),
    )
    save(
        folder,
        loader_module=__name__,
        data_path=str(data),
        signature=signature,
        input_example=planes_after(["Q16", "D4"])[None],
        pip_requirements=[f"lzsweep=={metadata.version('lzsweep')}"],
    )


def _load_pyfunc(path: str) -> Player:
    """What MLflow calls to load the model."""
    return Player(read_weights(Path(path) / WEIGHTS_FILE))

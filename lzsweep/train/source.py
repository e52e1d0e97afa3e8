"""Where an existing network is read from: a weights file, a checkpoint, or the folder of a run.

Without torch, so that what is wrong with `network.init_from` is told before the long imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lzsweep.config import BEST_CHECKPOINT, LAST_CHECKPOINT
from lzsweep.errors import ConfigError, DataError
from lzsweep.go.weights import read_weights

_ZIP = b"PK\x03\x04"  # a checkpoint is a zip archive


def find_source(path: Path | str) -> Path:
    """The file that holds the network: `path` itself, or the best or last checkpoint of a run.

    Raises:
        DataError: there is no such file or folder, or no checkpoint in the folder.
    """
    source = Path(path).expanduser()
    if source.is_file():
        return source
    if not source.is_dir():
        raise DataError(f"a weights file, a checkpoint or a run's folder must exist at {source}")
    for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
        if (source / name).is_file():
            return source / name
    raise DataError(
        f"a run's folder must hold {BEST_CHECKPOINT} or {LAST_CHECKPOINT}, but {source} does not;"
        " name the folder of one run or trial (outputs/DATE/TIME, multirun/STUDY/NUMBER)"
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint, by its name or its first bytes; else it holds weights."""
    if path.suffix == ".ckpt":
        return True
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def check_init_from(network: Any) -> None:
    """Check a `network` node's `init_from` as far as that takes no torch.

    Raises:
        DataError: nothing is there, or it is no weights file.
        ConfigError: the weights are those of a network of another size.
    """
    if not isinstance(network, Mapping) or not network.get("init_from"):
        return
    source = find_source(network["init_from"])
    if not is_checkpoint(source) and {"blocks", "filters"} <= set(network):
        weights = read_weights(source)
        there = (weights.blocks, weights.filters)
        check_size(source, there=there, wanted=(network["blocks"], network["filters"]))


def check_size(source: Path, *, there: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Compare two networks' numbers of blocks and filters.

    Raises:
        ConfigError: they differ.
    """
    if there != wanted:
        raise ConfigError(
            [
                f"network.init_from={source} must have the network's size, but holds {there[0]}"
                f" blocks x {there[1]} filters and the network has {wanted[0]} x {wanted[1]};"
                f" set network.blocks={there[0]} network.filters={there[1]}"
            ]
        )

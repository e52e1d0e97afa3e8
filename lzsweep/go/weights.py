"""Leela Zero's weights file, read and written as numpy arrays.

Text, optionally gzipped. Line 1 is the version: `1`, or `2` where the value head speaks for black
instead of for the side to move. Then a line of numbers for each tensor, in this order (it is that
of leela-zero's `Network.cpp`); `C` filters, every tensor flattened in C order:

    input convolution   weight [C, 18, 3, 3], bias [C], mean [C], variance [C]
    2 a residual block  weight [C, C, 3, 3],  bias [C], mean [C], variance [C]
    policy head         weight [2, C, 1, 1],  bias [2], mean [2], variance [2],
                        dense weight [362, 722], bias [362]
    value head          weight [1, C, 1, 1],  bias [1], mean [1], variance [1],
                        dense weight [256, 361], bias [256], dense weight [1, 256], bias [1]

A layer gives `(convolution + bias - mean) / sqrt(variance + 1e-5)`: batch normalisation without a
gamma, its beta hidden in the bias. The engine itself checks little (it fills short rows up with
zeros and computes with NaN), so everything is checked here, reading and writing.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt
import orjson

from lzsweep.errors import DataError
from lzsweep.go.board import N_MOVES, N_POINTS

INPUT_PLANES: Final = 18
POLICY_PLANES: Final = 2
VALUE_PLANES: Final = 1
VALUE_HIDDEN: Final = 256
EPSILON: Final = 1e-5

_N_ROWS_WITHOUT_TOWER: Final = 18
_N_ROWS_OF_BLOCK: Final = 8
# Far above any network there is; a damaged or hostile file must not fill the memory.
_MAX_LINES: Final = 10_000
_MAX_LINE_BYTES: Final = 1 << 26
_MAX_NUMBERS: Final = 1 << 28

Array = npt.NDArray[np.float32]
_File = IO[bytes] | gzip.GzipFile
_Layout = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """A convolution with its batch normalisation, as the file has it.

    Attributes:
        weight: `[out, in, k, k]`.
        bias: `[out]`; beta times `sqrt(variance + 1e-5)`.
        mean: `[out]` running mean.
        variance: `[out]` running variance.
    """

    weight: Array
    bias: Array
    mean: Array
    variance: Array

    @property
    def beta(self) -> Array:
        """`[out]` the batch normalisation's shift."""
        deviation = np.sqrt(self.variance.astype(np.float64) + EPSILON)
        return (self.bias / deviation).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A fully connected layer: weight `[out, in]`, bias `[out]`."""

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """All of a network; whatever is constructed has the right shapes and finite numbers.

    Attributes:
        version: 1, or 2 where the value is black's.
        tower: Two convolutions for each residual block.

    Raises:
        DataError: on construction, naming the tensor that is wrong.
    """

    version: int
    input: Convolution
    tower: tuple[Convolution, ...]
    policy: Convolution
    policy_dense: Dense
    value: Convolution
    value_hidden: Dense
    value_output: Dense

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise DataError(f"a weights version must be 1 or 2, but got {self.version}.")
        if len(self.tower) % 2:
            raise DataError(f"a tower must have two convolutions a block, got {len(self.tower)}.")
        for (name, shape), tensor in zip(
            _layout(self.filters, self.blocks), self.tensors(), strict=True
        ):
            if tensor.shape != shape:
                raise DataError(f"{name} must have the shape {shape}, but got {tensor.shape}.")
            _check_numbers(name, tensor)

    @property
    def filters(self) -> int:
        return len(self.input.bias)

    @property
    def blocks(self) -> int:
        return len(self.tower) // 2

    def tensors(self) -> Iterator[Array]:
        """Every tensor, in the order of the file."""
        heads = (self.policy, self.policy_dense, self.value, self.value_hidden, self.value_output)
        layers: tuple[Convolution | Dense, ...] = (self.input, *self.tower, *heads)
        for layer in layers:
            for field in fields(layer):
                yield getattr(layer, field.name)


def fold_batch_norm(
    weight: npt.ArrayLike,
    *,
    mean: npt.ArrayLike,
    variance: npt.ArrayLike,
    beta: npt.ArrayLike = 0.0,
    gamma: npt.ArrayLike = 1.0,
) -> Convolution:
    """Bring a convolution without bias and its batch normalisation into the file's form.

    Exact for `(conv - mean) / sqrt(variance + 1e-5) * gamma + beta`. (A bias is `beta` times
    `sqrt(variance + 1e-5)`: with the sum under the root, the engine's own.)

    Args:
        weight: `[out, in, k, k]`.
        mean: `[out]`.
        variance: `[out]`.
        beta: `[out]` or one number.
        gamma: `[out]` or one number.
    """
    wide = np.asarray(weight, np.float64)
    scale = np.broadcast_to(np.asarray(gamma, np.float64), wide.shape[:1])
    spread = np.asarray(variance, np.float64)
    return Convolution(
        weight=(wide * scale[:, None, None, None]).astype(np.float32),
        bias=np.broadcast_to(
            np.asarray(beta, np.float64) * np.sqrt(spread + EPSILON), spread.shape
        ).astype(np.float32),
        mean=(np.asarray(mean, np.float64) * scale).astype(np.float32),
        variance=spread.astype(np.float32),
    )


def write_weights(path: Path, weights: Weights) -> None:
    """Write a weights file, gzipped if its name ends in `.gz`; never half of one.

    As few digits as name each float32 exactly, so that reading gives the same arrays.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            if path.suffix == ".gz":
                # No name and no time inside: the same weights are the same bytes. Level 6 would
                # take six times as long for 7 percent, while the next trial waits for the slot.
                with gzip.GzipFile("", "wb", 1, fileobj=file, mtime=0) as packed:
                    _write_text(packed, weights)
            else:
                _write_text(file, weights)
        aside.replace(path)
    except OSError as e:
        raise DataError(f"weights must go to a writable file, but {path}: {e.strerror}.") from e
    finally:
        aside.unlink(missing_ok=True)


def read_weights(path: Path) -> Weights:
    """Read a weights file, gzipped or not (its first bytes tell).

    Raises:
        DataError: with file and line, if it is missing or anything in it is not as it must be.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                return _parse(path, file)
            with gzip.open(file) as text:
                return _parse(path, text)
    except FileNotFoundError as e:
        raise DataError(f"a weights file must exist, but {path} does not.") from e
    except (EOFError, zlib.error, OSError) as e:
        raise DataError(f"{path} must be readable, but it is damaged: {e}.") from e


def _write_text(file: _File, weights: Weights) -> None:
    file.write(b"%d\n" % weights.version)
    for tensor in weights.tensors():
        row = orjson.dumps(tensor.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)  # [0.1,-2e-7]
        file.write(row[1:-1].replace(b",", b" ") + b"\n")


def _convolution_layout(name: str, out: int, inner: int, size: int) -> _Layout:
    yield f"{name} weight", (out, inner, size, size)
    for part in ("bias", "mean", "variance"):
        yield f"{name} {part}", (out,)


def _dense_layout(name: str, out: int, inner: int) -> _Layout:
    yield f"{name} weight", (out, inner)
    yield f"{name} bias", (out,)


def _head_layout(filters: int) -> _Layout:
    yield from _convolution_layout("policy", POLICY_PLANES, filters, 1)
    yield from _dense_layout("policy dense", N_MOVES, POLICY_PLANES * N_POINTS)
    yield from _convolution_layout("value", VALUE_PLANES, filters, 1)
    yield from _dense_layout("value hidden", VALUE_HIDDEN, VALUE_PLANES * N_POINTS)
    yield from _dense_layout("value output", 1, VALUE_HIDDEN)


def _layout(filters: int, blocks: int) -> _Layout:
    yield from _convolution_layout("input", filters, INPUT_PLANES, 3)
    for number in range(2 * blocks):
        name = f"block {number // 2} convolution {number % 2}"
        yield from _convolution_layout(name, filters, filters, 3)
    yield from _head_layout(filters)


def _check_numbers(name: str, tensor: Array) -> None:
    if not np.isfinite(tensor).all():
        at = int(np.flatnonzero(~np.isfinite(tensor.ravel()))[0])
        value = tensor.ravel()[at]
        raise DataError(f"{name} must be finite numbers, but number {at + 1} is {value}.")
    if name.endswith("variance") and (tensor < 0).any():
        raise DataError(f"{name} must not be negative, but holds {tensor.min()}.")


def _read_rows(path: Path, file: _File) -> Iterator[Array]:
    """The rows after the version, each as numbers; damage is told with its line."""
    n_numbers = 0
    for number in itertools.count(2):
        line = file.readline(_MAX_LINE_BYTES)
        if not line:
            return
        if number > _MAX_LINES or (len(line) == _MAX_LINE_BYTES and line[-1:] != b"\n"):
            raise DataError(f"{path}:{number}: no network is as large as this.")
        try:
            row = np.loadtxt([line], np.float32, comments=None, ndmin=1) if line.strip() else None
        except ValueError as e:
            raise DataError(f"{path}:{number}: a row must hold numbers only: {e}") from e
        n_numbers += 0 if row is None else row.size
        if n_numbers > _MAX_NUMBERS:
            raise DataError(f"{path}:{number}: no network is as large as this.")
        yield np.empty(0, np.float32) if row is None else row


def _parse(path: Path, file: _File) -> Weights:
    version = file.readline(16).strip()
    if version not in (b"1", b"2"):
        raise DataError(
            f"{path}:1: the first line must be the version, 1 or 2, but is {version!r}; is this a "
            "Leela Zero weights file?"
        )
    rows = list(_read_rows(path, file))
    n_missing = -(len(rows) - _N_ROWS_WITHOUT_TOWER) % _N_ROWS_OF_BLOCK
    if len(rows) < _N_ROWS_WITHOUT_TOWER or n_missing:
        raise DataError(
            f"{path}: a network of b blocks must have 19 + 8 b lines, but {len(rows) + 1} are "
            "there; the file was cut off, or holds a blank line."
        )
    # The first bias tells the number of filters, here as in the engine.
    filters, blocks = rows[1].size, (len(rows) - _N_ROWS_WITHOUT_TOWER) // _N_ROWS_OF_BLOCK
    tensors = []
    layout = _layout(filters, blocks)
    for number, ((name, shape), row) in enumerate(zip(layout, rows, strict=True), start=2):
        if row.size != math.prod(shape):
            raise DataError(
                f"{path}:{number}: {name} must have {math.prod(shape)} numbers for {filters} "
                f"filters, but has {row.size}."
            )
        try:
            _check_numbers(name, row)
        except DataError as e:
            raise DataError(f"{path}:{number}: {e}") from e
        tensors.append(row.reshape(shape))
    return _assemble(int(version), tensors)


def _assemble(version: int, tensors: list[Array]) -> Weights:
    head = len(tensors) - 14
    layers = [Convolution(*tensors[start : start + 4]) for start in range(0, head, 4)]
    policy, value = tensors[head : head + 6], tensors[head + 6 :]
    return Weights(
        version=version,
        input=layers[0],
        tower=tuple(layers[1:]),
        policy=Convolution(*policy[:4]),
        policy_dense=Dense(*policy[4:]),
        value=Convolution(*value[:4]),
        value_hidden=Dense(*value[4:6]),
        value_output=Dense(*value[6:]),
    )

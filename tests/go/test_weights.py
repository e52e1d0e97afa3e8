"""The weights codec: exact text, strict checks, and the engine computing from it what we do."""

from __future__ import annotations

import dataclasses
import gzip
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzsweep.errors import DataError
from lzsweep.go.board import BOARD_SIZE, N_POINTS, PASS
from lzsweep.go.gtp import Engine
from lzsweep.go.sgf import Game, read_games
from lzsweep.go.weights import (
    EPSILON,
    Weights,
    fold_batch_norm,
    read_weights,
    write_weights,
)
from tests.go.engine import PROJECT, game_records, parse_heatmap, set_up, start_leelaz
from tests.go.network import evaluate, random_weights

SMALL = random_weights(1, 3)


@pytest.mark.parametrize("name", ["net.txt", "net.txt.gz"])
@pytest.mark.parametrize(("blocks", "filters", "version"), [(0, 1, 1), (1, 3, 2)])
def test_writing_reading_and_writing_again_gives_the_same_bytes(
    tmp_path: Path, name: str, blocks: int, filters: int, version: int
) -> None:
    weights = random_weights(blocks, filters, version=version)
    first, second = tmp_path / name, tmp_path / "again" / name
    second.parent.mkdir()
    write_weights(first, weights)
    back = read_weights(first)
    assert (back.version, back.blocks, back.filters) == (version, blocks, filters)
    for ours, theirs in zip(weights.tensors(), back.tensors(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    write_weights(second, back)
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_every_float32_survives(tmp_path: Path) -> None:
    shape = SMALL.value_hidden.weight.shape
    rng = np.random.default_rng(8)
    # Any bits at all: denormal, huge, negative zero; only not those of infinity and NaN.
    numbers = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    numbers = np.where(np.isfinite(numbers), numbers, np.float32(-0.0))
    layer = dataclasses.replace(SMALL.value_hidden, weight=numbers)
    write_weights(tmp_path / "net.txt", dataclasses.replace(SMALL, value_hidden=layer))
    back = read_weights(tmp_path / "net.txt")
    assert back.value_hidden.weight.tobytes() == numbers.tobytes()


def _with_bias(row: npt.NDArray[np.float32]) -> Weights:
    return dataclasses.replace(SMALL, input=dataclasses.replace(SMALL.input, bias=row))


def test_folding_is_what_batch_normalisation_does() -> None:
    rng = np.random.default_rng(5)
    x, weight = rng.normal(size=(7, 4)), rng.normal(size=(6, 4, 1, 1))
    mean, beta, gamma = rng.normal(size=(3, 6))
    variance = 10.0 ** rng.uniform(-7, 1, 6)
    plain = x @ weight[:, :, 0, 0].T
    expected = (plain - mean) / np.sqrt(variance + EPSILON) * gamma + beta
    folded = fold_batch_norm(weight, mean=mean, variance=variance, beta=beta, gamma=gamma)
    theirs = x @ folded.weight[:, :, 0, 0].T.astype(np.float64) + folded.bias - folded.mean
    np.testing.assert_allclose(theirs / np.sqrt(folded.variance + EPSILON), expected, rtol=1e-4)
    np.testing.assert_allclose(folded.beta, beta, rtol=1e-6)
    # Without a gamma the weights, mean and variance are untouched.
    bare = fold_batch_norm(weight, mean=mean, variance=variance, beta=beta)
    np.testing.assert_array_equal(bare.weight, weight.astype(np.float32))
    np.testing.assert_array_equal(bare.mean, mean.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "a weights version must be 1 or 2, but got 3"),
        ({"tower": SMALL.tower[:1]}, "a tower must have two convolutions a block, got 1"),
        ({"policy": SMALL.value}, r"policy weight must have the shape \(2, 3, 1, 1\)"),
        ({"value_output": SMALL.policy_dense}, r"value output weight must have .* \(1, 256\)"),
    ],
)
def test_what_is_no_network_cannot_be_made(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(SMALL, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_must_be_finite(value: float) -> None:
    row = SMALL.input.bias.copy()
    row[1] = value
    with pytest.raises(DataError, match=f"input bias must be finite .* number 2 is {value}"):
        _with_bias(row)


def test_variances_must_not_be_negative() -> None:
    layer = dataclasses.replace(SMALL.value, variance=np.array([-0.25], np.float32))
    with pytest.raises(DataError, match=r"value variance must not be negative, but holds -0\.25"):
        dataclasses.replace(SMALL, value=layer)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ...]:
    path = tmp_path_factory.mktemp("weights") / "good.txt"
    write_weights(path, SMALL)
    return tuple(path.read_bytes().splitlines(keepends=True))


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, b"3\n", r"bad\.txt:1: the first line must be the version, 1 or 2, but is b'3'"),
        (1, b"", r"bad\.txt:1: the first line must be the version"),
        (
            3,
            b"1 2\n",
            r"bad\.txt:2: input weight must have 324 numbers .* but has 486",
        ),
        (4, b"1 2\n", r"bad\.txt:4: input mean must have 3 numbers for 3 filters, but has 2"),
        (4, b"1 2 3 4\n", r"bad\.txt:4: input mean must have 3 numbers .* but has 4"),
        (4, b"1 2,3 4\n", r"bad\.txt:4: a row must hold numbers only: .*'2,3'"),
        (4, b"1 nan 3\n", r"bad\.txt:4: input mean must be finite numbers, but number 2 is nan"),
        (4, b"1 9e99 3\n", r"bad\.txt:4: input mean must be finite numbers, but number 2 is inf"),
        (5, b"1 -1 3\n", r"bad\.txt:5: input variance must not be negative, but holds -1\.0"),
        (4, b"\n", r"bad\.txt:4: input mean must have 3 numbers for 3 filters, but has 0"),
        (4, b"", r"must have 19 \+ 8 b lines, but 26 are there"),
        (4, b"1 2 3\n\n", r"must have 19 \+ 8 b lines, but 28 are there"),
    ],
)
def test_a_wrong_line_is_named(
    tmp_path: Path, lines: tuple[bytes, ...], line: int, text: bytes, message: str
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"".join([*lines[: line - 1], text, *lines[line:]]))
    with pytest.raises(DataError, match=message):
        read_weights(path)


def test_white_space_that_the_engine_takes_is_taken(
    tmp_path: Path, lines: tuple[bytes, ...]
) -> None:
    path = tmp_path / "loose.txt"
    path.write_bytes(b"".join(lines).replace(b"\n", b" \r\n").replace(b" ", b"\t", 5))
    np.testing.assert_array_equal(read_weights(path).input.weight, SMALL.input.weight)


def test_a_file_that_is_missing_or_damaged(tmp_path: Path, lines: tuple[bytes, ...]) -> None:
    with pytest.raises(DataError, match=r"a weights file must exist, but .*none\.txt does not"):
        read_weights(tmp_path / "none.txt")
    packed = gzip.compress(b"".join(lines))
    path = tmp_path / "cut.gz"
    path.write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"cut\.gz must be readable, but it is damaged"):
        read_weights(path)
    with pytest.raises(DataError, match=r"weights must go to a writable file, but .*/none/x"):
        write_weights(tmp_path / "none" / "x", SMALL)


@given(st.integers(0, 10**7), st.binary(min_size=1, max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_mutated_file_is_refused_or_read_but_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    lines: tuple[bytes, ...],
    at: int,
    piece: bytes,
    packed: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = bytearray(b"".join(lines[:6]) + b"1 2 3\n" * 20)
    data = bytearray(gzip.compress(bytes(data))) if packed else data
    start = at % len(data)
    data[start : start + len(piece)] = piece
    path = folder / "mutated.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_weights(path)


SYMMETRIES = range(8)


def _symmetry(number: int) -> npt.NDArray[np.intp]:
    """`[361]` the point that the engine's symmetry shows the network at each point."""
    y, x = np.divmod(np.arange(N_POINTS), BOARD_SIZE)
    if number & 4:
        x, y = y, x
    if number & 2:
        x = BOARD_SIZE - 1 - x
    if number & 1:
        y = BOARD_SIZE - 1 - y
    return y * BOARD_SIZE + x


def _planes(game: Game, number: int) -> npt.NDArray[np.float64]:
    record = game_records(game)[number]
    planes = np.zeros((18, N_POINTS))
    for plane, bits in enumerate(record[0]):
        packed = np.frombuffer(bits.to_bytes(46, "little"), np.uint8)
        planes[plane] = np.unpackbits(packed, bitorder="little")[:N_POINTS]
    planes[16 + record[1]] = 1
    return planes


@pytest.mark.engine
@pytest.mark.parametrize(
    ("blocks", "filters", "version", "n_positions"), [(2, 8, 1, 50), (1, 5, 2, 20)]
)
def test_the_engine_computes_what_the_weights_say(
    tmp_path: Path, blocks: int, filters: int, version: int, n_positions: int
) -> None:
    """Raw policy and win rate of many positions, each in all 8 symmetries."""
    weights = random_weights(blocks, filters, version=version, seed=blocks)
    write_weights(tmp_path / "net.txt.gz", weights)
    bundled = PROJECT / "lzsweep" / "data" / "gnugo_selfplay.sgf.gz"
    games = [game for game in read_games(bundled) if isinstance(game, Game)]
    seen = []
    with start_leelaz(tmp_path, "net.txt.gz") as engine:
        for number, game in enumerate(games[::3][:n_positions]):
            at = (17 * number + 3) % len(game.moves)
            set_up(engine, game, at)
            seen.append(_compare(engine, weights, game, at))
    assert len(seen) == n_positions
    # The comparison would mean nothing if the net gave the same for every position.
    assert np.std(seen) > 0.01


def _compare(engine: Engine, weights: Weights, game: Game, at: int) -> float:
    planes = _planes(game, at)
    shown = np.stack([planes[:, _symmetry(number)] for number in SYMMETRIES])
    policies, values = evaluate(weights, shown)
    empty = ~planes[:16:8].any(axis=0)
    for number in SYMMETRIES:
        engine.ask(f"heatmap {number}")
        cells, winrate = parse_heatmap(engine.notes)
        ours = 1000 * np.append(np.empty(N_POINTS), policies[number][PASS])
        ours[_symmetry(number)] = 1000 * policies[number][:N_POINTS]
        ours[:N_POINTS] *= empty
        # The engine cuts the decimals off, after float32 sums in an order of its own.
        near_step = np.abs(ours - np.round(ours)) < 0.01
        np.testing.assert_array_equal(np.where(near_step, 0, cells - np.floor(ours)), 0)
        sign = -1 if weights.version == 2 and game.colours[at] else 1
        assert winrate == pytest.approx((1 + sign * values[number]) / 2, abs=1e-5)
    return float(values[0])

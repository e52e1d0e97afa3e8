"""Whatever goes into a store comes out of it; whatever happens to its file is noticed."""

from __future__ import annotations

import itertools
import json
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzsweep.errors import DataError
from lzsweep.go.chunks import Records, encode_game
from lzsweep.go.sgf import Game
from lzsweep.train.build import build_store
from lzsweep.train.data import Rows, gather
from lzsweep.train.decode import Decoder
from lzsweep.train.pieces import chunk_pieces, game_records
from lzsweep.train.store import HEADER_BYTES, HEADER_START, POLICY_SECTIONS, SECTIONS, Store
from tests.train.test_decode import pick_all

NAMES = ("planes", "side", "policy", "won")
COLUMNS = (*SECTIONS, *POLICY_SECTIONS)


def make_game(rng: np.random.Generator, n: int, first: int) -> Game:
    """Boards of any stones: the store does not know the rules."""
    black = rng.random((n, 361)) < 0.3
    white = (rng.random((n, 361)) < 0.3) & ~black
    black[0] &= rng.random() < 0.5  # some games begin with stones on the board
    white[0] &= bool(black[0].any())
    boards = np.packbits(np.stack([black, white], 1), axis=2, bitorder="little")
    return Game(
        source="",
        setup_black=0,
        setup_white=0,
        colours=bytes((first + i) % 2 for i in range(n)),
        moves=array("H", rng.integers(0, 362, n).tolist()),
        frames=boards.tobytes(),
        winner=int(rng.integers(2)),
        key=rng.bytes(16),
    )


def joined(parts: list[Records]) -> Records:
    return Records(*(np.concatenate([getattr(part, name) for part in parts]) for name in NAMES))


def taken(records: Records, rows: Any) -> Records:
    return Records(*(getattr(records, name)[rows] for name in NAMES))


@st.composite
def record_lists(draw: st.DrawFn) -> Records:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    games = [encode_game(make_game(rng, n, draw(st.integers(0, 1)))) for n in lengths]
    softened = []
    for game in games:
        n_tried = draw(st.sampled_from([0, 2, 30, 362]))
        if n_tried:
            policy = np.zeros_like(game.policy)
            for row in policy:
                visits = rng.integers(1, 1600, n_tried).astype(np.float32)
                row[rng.choice(362, n_tried, replace=False)] = visits / visits.sum()
            game = Records(game.planes, game.side, policy, game.won)
        softened.append(game)
    records = joined(softened)
    if draw(st.booleans()):
        records = taken(records, rng.permutation(len(records)))
    if draw(st.booleans()):
        records = taken(records, slice(draw(st.integers(0, len(records) - 1)), None))
    return records


@given(records=record_lists(), cuts=st.lists(st.integers(0, 48), max_size=3))
@settings(max_examples=60, deadline=None)
def test_records_come_out_as_they_went_in(
    records: Records, cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # However the reader cuts the file into blocks.
    edges = [0, *sorted(min(cut, len(records)) for cut in cuts), len(records)]
    blocks = [taken(records, slice(*pair)) for pair in itertools.pairwise(edges)]
    path = tmp_path_factory.mktemp("p") / "some.store"
    build_store(path, chunk_pieces(block for block in blocks if len(block)), source="")

    store = Store.open(path, verify=True)

    found = joined([game_records(store, game) for game in range(store.n_games)])
    for name in ("planes", "side", "won"):
        np.testing.assert_array_equal(getattr(found, name), getattr(records, name))
    np.testing.assert_allclose(found.policy, records.policy, rtol=2e-3, atol=1e-7)
    decoded = decode_all(store)
    target = np.eye(362)[decoded[1]] if decoded[1].ndim == 1 else decoded[1]
    np.testing.assert_allclose(target, records.policy, rtol=2e-3, atol=1e-7)
    bits = np.unpackbits(records.planes, axis=2, bitorder="little", count=361)
    np.testing.assert_array_equal(decoded[0][:, :16].reshape(bits.shape), bits)


@given(seed=st.integers(0, 2**32), lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_games_come_out_as_they_went_in(
    seed: int, lengths: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    games = [make_game(rng, n, n % 2) for n in lengths]
    path = tmp_path_factory.mktemp("p") / "some.store"

    store = Store.open(build_store(path, games, source="").path, verify=True)

    for number, game in enumerate(games):
        found, expected = game_records(store, number), encode_game(game)
        for name in NAMES:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture(scope="module")
def soft_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Store]:
    rng = np.random.default_rng(1)
    records = encode_game(make_game(rng, 30, 0))
    policy = rng.dirichlet([0.05] * 362, 30).astype(np.float32)
    soft = Records(records.planes, records.side, policy, records.won)
    path = tmp_path_factory.mktemp("soft") / "some.store"
    store = build_store(path, chunk_pieces([soft, records]), source="fuzz")
    return path.read_bytes(), store


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    kind = st.sampled_from(["set", "cut", "insert", "append"])
    place = st.floats(0, 1, exclude_max=True)
    return draw(st.lists(st.tuples(kind, place, st.binary(min_size=1, max_size=9)), min_size=1))


@given(changes=mutations(), in_header=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_mutated_file_is_refused_or_means_the_same(
    soft_store: tuple[bytes, Store],
    changes: list[tuple[str, float, bytes]],
    in_header: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = bytearray(soft_store[0])
    for kind, place, new in changes:
        at = int(place * (1200 if in_header else len(data)))
        if kind == "set":
            data[at : at + len(new)] = new
        elif kind == "cut":
            del data[at : at + len(new)]
        elif kind == "insert":
            data[at:at] = new
        else:
            data += new
    path = tmp_path_factory.getbasetemp() / "mutated.store"
    path.write_bytes(data)
    try:
        found = Store.open(path, verify=True)
    except DataError:
        return
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(soft_store[1], name))


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=3)
    | st.lists(st.integers(-2, 99999), max_size=3)
    | st.floats()
)


@given(
    section=st.sampled_from(COLUMNS),
    key=st.sampled_from(["shape", "offset", "crc32", "dtype", None]),
    value=VALUES,
)
@settings(max_examples=200, deadline=None)
def test_a_header_that_lies_is_refused_or_means_the_same(
    soft_store: tuple[bytes, Store],
    section: str,
    key: str | None,
    value: object,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    header = json.loads(soft_store[0][HEADER_START:HEADER_BYTES])
    if key is None:
        header["sections"][section] = value
    else:
        header["sections"][section][key] = value
    path = write_header(tmp_path_factory.getbasetemp() / "lying.store", soft_store[0], header)
    try:
        found = Store.open(path, verify=True)
    except DataError:
        return
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(soft_store[1], name))


@pytest.mark.parametrize("header", [b"[]", b"{}", b"null", b"\xff", b"[" * 3000, b'{"version":1}'])
def test_a_header_that_is_none_is_damage(
    soft_store: tuple[bytes, Store], header: bytes, tmp_path: Path
) -> None:
    path = write_header(tmp_path / "some.store", soft_store[0], header)
    with pytest.raises(DataError, match="is damaged: its header is unreadable"):
        Store.open(path)


def write_header(path: Path, data: bytes, header: object) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    text = raw.ljust(HEADER_BYTES - HEADER_START)
    crc = zlib.crc32(text).to_bytes(4, "little")
    path.write_bytes(data[:16] + crc + text + data[HEADER_BYTES:])
    return path


def decode_all(store: Store) -> tuple[np.ndarray, np.ndarray]:
    pick = pick_all(list(range(store.n_positions)), [0] * store.n_positions)
    batch = Decoder()(gather(Rows.of(store), pick))
    return batch.planes.numpy(), batch.move.numpy()

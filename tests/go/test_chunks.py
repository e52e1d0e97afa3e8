"""Training chunks: the engine's own, round trips, damage, bounded memory."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzsweep.errors import DataError
from lzsweep.go.archive import Damage
from lzsweep.go.board import N_MOVES, N_POINTS, PASS
from lzsweep.go.chunks import (
    Records,
    encode_game,
    format_binary,
    format_text,
    goes_on,
    read_chunks,
    write_chunks,
)
from lzsweep.go.gtp import Engine
from lzsweep.go.sgf import Game, read_games
from tests.go.engine import (
    PROJECT,
    dump_supervised,
    find_program,
    game_records,
    parse_record,
    write_plain_net,
)

BUNDLED = PROJECT / "lzsweep" / "data" / "gnugo_selfplay.sgf.gz"
FORMATS = {"text": format_text, "binary": format_binary}


@pytest.fixture(scope="module")
def games() -> list[Game]:
    return [game for game in read_games(BUNDLED) if isinstance(game, Game)]


def join(records: Iterable[Records]) -> Records:
    parts = list(records)
    return Records(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("planes", "side", "policy", "won")
        )
    )


def read_good(path: Path) -> Records:
    items = list(read_chunks(path))
    assert [item for item in items if isinstance(item, Damage)] == []
    return join(item for item in items if isinstance(item, Records))


def read_bytes(tmp_path: Path, data: bytes) -> tuple[int, list[str]]:
    """How many records `data` gives, and what is said of the others."""
    path = tmp_path / "chunk.gz"
    path.write_bytes(data)
    items = list(read_chunks(path))
    n_records = sum(len(item) for item in items if isinstance(item, Records))
    return n_records, [item.detail for item in items if isinstance(item, Damage)]


def assert_same(ours: Records, theirs: Records) -> None:
    for name in ("planes", "side", "policy", "won"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.engine
def test_the_engine_writes_the_same_bytes(tmp_path: Path, games: list[Game]) -> None:
    few = [game for game in games if len(game.moves) < 200][:5]
    texts = {game.source: format_text(encode_game(game)) for game in few}
    collection = tmp_path / "few.sgf"
    wanted = {int(game.source.rsplit("#", 1)[1]) for game in few}
    parts = gzip.decompress(BUNDLED.read_bytes()).split(b"(;GM")[1:]
    collection.write_bytes(b"".join(b"(;GM" + parts[number - 1] for number in wanted))
    dump_supervised(collection, tmp_path)
    theirs = gzip.decompress((tmp_path / "out.0.gz").read_bytes())
    # The engine shuffles the games.
    for text in texts.values():
        assert text in theirs
    assert len(theirs) == sum(map(len, texts.values()))
    records = read_good(tmp_path / "out.0.gz")
    assert len(records) == sum(len(game.moves) for game in few)
    assert (~goes_on(records)).sum() == len(few)


@pytest.mark.engine
def test_self_play_with_soft_policies(tmp_path: Path) -> None:
    write_plain_net(tmp_path / "net.txt")
    command = [find_program("leelaz"), "--cpu-only", "-g", "-w", "net.txt", "--noponder"]
    command += ["-t", "1", "-s", "1", "-v", "40", "-r", "0", "-n"]
    with Engine(command, folder=tmp_path) as engine:
        for number in range(12):
            engine.ask(f"genmove {'bw'[number % 2]}")
        engine.ask("dump_training b soft")
    path = tmp_path / "soft.0.gz"
    records = read_good(path)
    assert records.side.tolist() == [0, 1] * 6
    assert records.won.tolist() == [1, 0] * 6
    assert ((records.policy > 0).sum(axis=1) > 3).all()
    np.testing.assert_allclose(records.policy.sum(axis=1), 1, atol=1e-4)
    assert goes_on(records).tolist() == [False] + [True] * 11
    assert format_text(records) == gzip.decompress(path.read_bytes())


def test_the_positions_of_a_game(games: list[Game]) -> None:
    game = games[3]
    text = format_text(encode_game(game)).decode("ascii").split("\n")
    ours = [parse_record(text[at : at + 19]) for at in range(0, len(text) - 1, 19)]
    assert ours == game_records(game)


@pytest.mark.parametrize("form", ["text", "binary"])
def test_chunks_hold_whole_games_in_order(tmp_path: Path, games: list[Game], form: str) -> None:
    records = [encode_game(game) for game in games[:7]]
    # mypy cannot see that these are the two literals.
    paths = write_chunks(tmp_path / "k", records, form=form, games_per_chunk=3)  # type: ignore[arg-type]
    assert [path.name for path in paths] == ["k.0.gz", "k.1.gz", "k.2.gz"]
    assert sorted(tmp_path.iterdir()) == paths
    assert_same(read_good(paths[0]), join(records[:3]))
    everything = read_good(tmp_path)
    assert_same(everything, join(records))
    assert np.flatnonzero(~goes_on(everything)).tolist() == [
        sum(len(game) for game in records[:number]) for number in range(7)
    ]


def test_no_games_make_no_file(tmp_path: Path) -> None:
    assert write_chunks(tmp_path / "k", []) == []
    with pytest.raises(DataError, match="chunks must go to a writable folder"):
        write_chunks(tmp_path / "none" / "k", [random_records(1, 1)])


def random_records(seed: int, n: int) -> Records:
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, 3, (n, 8, N_POINTS))
    bits = np.concatenate([owner == 1, owner == 2], axis=1)
    # Sixteenths survive the six digits of the text.
    policy = np.zeros((n, N_MOVES), np.float32)
    for row in policy:
        np.add.at(row, rng.integers(0, N_MOVES, 16), np.float32(1 / 16))
    return Records(
        np.packbits(bits, axis=2, bitorder="little"),
        rng.integers(0, 2, n).astype(np.uint8),
        policy,
        rng.integers(0, 2, n).astype(np.uint8),
    )


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from(["text", "binary"]))
@settings(max_examples=30, deadline=None)
def test_any_records_survive(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, form: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "chunk.gz"
    records = random_records(seed, n)
    path.write_bytes(FORMATS[form](records))
    assert_same(read_good(path), records)


def test_the_first_position_follows_what_was_read_before(games: list[Game]) -> None:
    records = encode_game(games[0])
    head, tail = records.take(slice(0, 9)), records.take(slice(9, 12))
    assert goes_on(tail, head).tolist() == [True, True, True]
    assert goes_on(tail).tolist() == [False, True, True]
    assert goes_on(head.take(slice(0, 0))).tolist() == []
    assert goes_on(tail, head.take(slice(0, 0))).tolist() == [False, True, True]


def test_files_of_more_than_one_block(tmp_path: Path, games: list[Game]) -> None:
    records = join(encode_game(game) for game in games[:8])
    for form, formatter in FORMATS.items():
        path = tmp_path / f"{form}.gz"
        data = formatter(records)
        assert len(data) > 2 << 20
        path.write_bytes(gzip.compress(data, 1))
        assert_same(read_good(path), records)


def test_archives_of_chunks(tmp_path: Path) -> None:
    records = random_records(1, 3)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in ("a.0.gz", "a.1.gz", "readme.txt"):
            info = tarfile.TarInfo(name)
            data = gzip.compress(format_text(records))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path = tmp_path / "chunks.tar.gz"
    path.write_bytes(out.getvalue())
    assert_same(read_good(path), join([records, records]))


def test_empty_files_are_told(tmp_path: Path) -> None:
    assert read_bytes(tmp_path, b"")[1] == [
        "empty; leelaz leaves such a file behind a multiple of 32 games, with nothing lost"
    ]
    assert read_bytes(tmp_path, gzip.compress(b"")) == (0, ["empty"])


def replaced(lines: list[bytes], at: int, text: bytes) -> bytes:
    return b"\n".join([*lines[:at], text, *lines[at + 1 :]])


@pytest.mark.parametrize(
    ("line", "text", "fault"),
    [
        (19, b"0" * 90, "line 1 must have 91 digits, but has 90"),
        (20, b"g" * 91, "a plane holds what is no hex digit"),
        (20, b"0" * 90 + b"2", "a plane holds what is no hex digit"),
        (35, b"2", "line 17 must be 0 or 1, but is b'2'"),
        (37, b"0", "line 19 must be 1 or -1, but is b'0'"),
        (36, b"1 2", "line 18 must have 362 numbers, but has 2"),
        (36, b"x " * 362, "line 18 must hold numbers only"),
    ],
)
def test_malformed_text_ends_its_file(tmp_path: Path, line: int, text: bytes, fault: str) -> None:
    lines = format_text(random_records(4, 3)).split(b"\n")
    detail = f"record 2: {fault}; the rest is left out"
    assert read_bytes(tmp_path, replaced(lines, line, text)) == (1, [detail])


@pytest.mark.parametrize(
    ("line", "text", "fault"),
    [
        (36, b"nan " * 362, "the probabilities are negative, not finite, or do not add up to 1"),
        (27, b"f" * 90 + b"1", "black and white stand on the same point"),
    ],
)
def test_a_record_that_makes_no_sense_is_left_out(
    tmp_path: Path, line: int, text: bytes, fault: str
) -> None:
    lines = format_text(random_records(4, 3)).split(b"\n")
    detail = f"record 2: {fault}; it is left out"
    assert read_bytes(tmp_path, replaced(lines, line, text)) == (2, [detail])


def test_damage_in_binary_is_named(tmp_path: Path) -> None:
    data = bytearray(format_binary(random_records(4, 3)))
    good = read_bytes(tmp_path, bytes(data[:-10]))
    assert good == (2, ["record 3: only 2166 of 2176 bytes are there; the rest is left out"])
    data[2176] = 2
    detail = "record 2: version, side to move or result are out of range; the rest is left out"
    assert read_bytes(tmp_path, bytes(data)) == (1, [detail])


def test_a_cut_file_gives_what_it_holds(tmp_path: Path) -> None:
    data = format_text(random_records(4, 3))
    assert read_bytes(tmp_path, data[:-1]) == (3, [])
    n_lines = data[: len(data) // 2].count(b"\n") - 19 + 1
    assert read_bytes(tmp_path, data[: len(data) // 2]) == (
        1,
        [f"record 2: only {n_lines} of 19 lines are there; the rest is left out"],
    )
    n_records, details = read_bytes(tmp_path, gzip.compress(data)[:-9])
    assert n_records <= 3
    assert "damaged gzip" in details[-1]
    long = read_bytes(tmp_path, b"0" * (3 << 20))
    assert long == (0, ["record 1: a line is too long for a training chunk; the rest is left out"])


@given(
    st.sampled_from(["text", "binary"]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=9)), max_size=3),
    st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None)
def test_damaged_chunks_give_sound_records_or_damage(
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    packed: bool,
    wounds: list[tuple[int, bytes]],
    cut: int,
) -> None:
    data = FORMATS[form](random_records(9, 4))
    broken = bytearray(gzip.compress(data, 1) if packed else data)
    for at, wound in wounds:
        start = at % len(broken)
        broken[start : start + len(wound)] = wound
    path = tmp_path_factory.getbasetemp() / "broken.gz"
    path.write_bytes(broken[: cut % (2 * len(broken))])
    for item in read_chunks(path):
        assert isinstance(item, Damage) or 0 < len(item) <= 4
        if isinstance(item, Records):
            assert np.isfinite(item.policy).all()
            assert item.side.max() <= 1
            assert item.won.max() <= 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path, games: list[Game]) -> None:
    text = format_text(encode_game(games[0]))
    path = tmp_path / "long.gz"
    path.write_bytes(gzip.compress(text, 1) * 60)
    assert len(text) * 60 > 24 << 20
    tracemalloc.start()
    n_records = sum(len(item) for item in read_chunks(path) if isinstance(item, Records))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_records == 60 * len(games[0].moves)
    assert peak < 12 << 20


def test_a_missing_folder_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a data path must exist"):
        read_chunks(tmp_path / "none")
    with pytest.raises(DataError, match=r"a data folder must hold \.gz files or archives"):
        read_chunks(tmp_path)


def test_a_pass_is_the_last_probability(games: list[Game]) -> None:
    rng = random.Random(1)
    game = rng.choice(games)
    policy = encode_game(game).policy
    assert policy.argmax(axis=1).tolist() == list(game.moves)
    assert PASS in game.moves

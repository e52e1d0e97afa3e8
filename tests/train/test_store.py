from __future__ import annotations

import multiprocessing
import os
import time
import zlib
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from lzsweep.errors import DataError
from lzsweep.go import sgf
from lzsweep.go.board import BLACK, WHITE
from lzsweep.go.sgf import Drop, Game, read_games
from lzsweep.train import build as build_module
from lzsweep.train.build import BUNDLED_GAMES, build_store, ensure_store, find_store
from lzsweep.train.store import MAGIC, Store, part_bytes

SGF = "(;GM[1]SZ[19]RE[B+1.5];B[pd];W[dp];B[pq];W[dd];B[])"


def game(n_moves: int, seed: int = 0, winner: int = BLACK, first: int = BLACK) -> Game:
    """Any boards and moves will do: the store does not look at them."""
    rng = np.random.default_rng(seed)
    return Game(
        source="test",
        setup_black=0,
        setup_white=0,
        colours=bytes((first + i) % 2 for i in range(n_moves)),
        moves=array("H", rng.integers(0, 362, n_moves).tolist()),
        frames=rng.integers(0, 256, n_moves * 92, np.uint8).tobytes(),
        winner=winner,
        key=blake2b(seed.to_bytes(8, "little"), digest_size=16).digest(),
    )


def build(tmp_path: Path, records: Iterable[Game | Drop]) -> Store:
    return build_store(tmp_path / "some.store", records, source="tests")


def test_gives_back_what_was_put_in(tmp_path: Path) -> None:
    first, second = game(10, 1, BLACK), game(3, 2, WHITE, first=WHITE)
    drops = [Drop("a", "no result", ""), Drop("b", "board size", ""), Drop("c", "no result", "")]

    store = build(tmp_path, [drops[0], first, *drops[1:], second])

    assert (store.n_games, store.n_positions) == (2, 13)
    assert store.info["drops"] == {"no result": 2, "board size": 1}
    assert store.info["source"] == "tests"
    assert store.game_start.tolist() == [0, 10, 13]
    assert store.move.tolist() == [*first.moves, *second.moves]
    boards = part_bytes(store.frames[store.position_frame])
    assert boards.tobytes() == first.frames + second.frames
    assert not store.frames[0].any()
    hashes = [int.from_bytes(g.key[:8], "little") for g in (first, second)]
    assert store.game_hash.tolist() == hashes


def test_flags_tell_side_winner_and_history(tmp_path: Path) -> None:
    store = build(tmp_path, [game(10, 1, winner=BLACK), game(2, 2, winner=WHITE, first=WHITE)])

    assert (store.flags & 1).tolist() == [0, 1] * 5 + [1, 0]
    assert (store.flags >> 1 & 1).tolist() == [1, 0] * 5 + [1, 0]
    assert (store.flags >> 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 0, 1]


def test_positions_of_games(tmp_path: Path) -> None:
    store = build(tmp_path, [game(3, 1), game(4, 2), game(2, 3)])

    assert store.positions_of(np.array([0, 2])).tolist() == [0, 1, 2, 7, 8]
    assert store.positions_of(np.array([1])).tolist() == [3, 4, 5, 6]


def test_a_position_costs_99_bytes(store: Store) -> None:
    assert store.path.stat().st_size / store.n_positions < 99.3


def test_bundled_games_are_all_there(store: Store) -> None:
    games = [record for record in read_games(BUNDLED_GAMES) if isinstance(record, Game)]

    assert store.n_games == len(games) >= 180
    assert store.n_positions == sum(len(g.moves) for g in games)


def test_split_is_by_hash_and_survives_more_games(tmp_path: Path) -> None:
    few = build_store(tmp_path / "few", [game(1, i) for i in range(200)], source="")
    many = build_store(tmp_path / "many", [game(1, i) for i in reversed(range(2000))], source="")

    sides = []
    for store in (few, many):
        split = store.split_games(0.2, 0.1)
        sides.append({int(store.game_hash[g]): name for name in split for g in split[name]})

    assert sides[0].items() <= sides[1].items()
    share = [list(sides[1].values()).count(name) / 2000 for name in ("train", "val", "test")]
    np.testing.assert_allclose(share, [0.7, 0.2, 0.1], atol=0.03)


def test_a_split_without_games_names_the_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val.* of the 1 games .*raise data\.val_fraction=0\.1"):
        build(tmp_path, [game(5)]).split_games(0.1, 0.1)


@pytest.mark.parametrize("fractions", [(0.0, 0.1), (0.1, 0.0), (0.5, 0.5)])
def test_refuses_fractions_that_leave_a_split_empty(
    store: Store, fractions: tuple[float, float]
) -> None:
    with pytest.raises(DataError, match=r"`val_fraction \+ test_fraction < 1` must hold"):
        store.split_games(*fractions)


def test_without_a_usable_game_the_drops_are_counted(tmp_path: Path) -> None:
    drops = [Drop("a", "no result", ""), Drop("b", "no result", ""), Drop("c", "no moves", "")]

    with pytest.raises(DataError, match=r"tests holds none .dropped: no moves: 1, no result: 2"):
        build(tmp_path, drops)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def records() -> Iterator[Game]:
        yield game(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, records())
    assert list(tmp_path.iterdir()) == []


def damaged(path: Path, offset: int, new: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(new)] = new
    path.write_bytes(data)
    return path


def test_damage_in_the_header_is_seen(tmp_path: Path) -> None:
    path = damaged(build(tmp_path, [game(5)]).path, 30, b"x")

    with pytest.raises(DataError, match=r"some\.store is damaged: its header .* Delete it"):
        Store.open(path)


def test_a_cut_file_is_seen(tmp_path: Path) -> None:
    path = build(tmp_path, [game(5)]).path
    os.truncate(path, path.stat().st_size - 1)

    with pytest.raises(DataError, match=r"is damaged: it has \d+ bytes where its header says"):
        Store.open(path)


def test_damage_in_a_section_is_seen_when_asked_for(tmp_path: Path) -> None:
    path = build(tmp_path, [game(5)]).path
    Store.open(path, verify=True)
    damaged(path, 4096 + 92 + 7, b"\x00\xff\x00")

    Store.open(path)
    with pytest.raises(DataError, match="section `frames` does not match its checksum"):
        Store.open(path, verify=True)


def test_a_newer_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = damaged(build(tmp_path, [game(5)]).path, 8, (3).to_bytes(4, "little"))

    with pytest.raises(DataError, match=r"has version 3, as a newer .*: update lzsweep"):
        Store.open(path)


def test_an_older_file_is_not_misread(tmp_path: Path) -> None:
    path = damaged(build(tmp_path, [game(5)]).path, 8, (1).to_bytes(4, "little"))

    with pytest.raises(DataError, match=r"has version 1, as an older .*: delete it, and import"):
        Store.open(path)


def test_another_file_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary")

    with pytest.raises(DataError, match=r"notes\.txt does not: not a store"):
        Store.open(path)
    with pytest.raises(DataError, match=r"absent\.store: No such file"):
        Store.open(tmp_path / "absent.store")


def test_a_header_that_lies_about_its_sections_is_damaged(tmp_path: Path) -> None:
    path = build(tmp_path, [game(5)]).path
    data = bytearray(path.read_bytes())
    text = bytes(data[20:4096]).replace(b'"shape": [5]', b'"shape": [4]', 1)
    data[20:4096] = text
    data[16:20] = zlib.crc32(text).to_bytes(4, "little")
    path.write_bytes(data)

    with pytest.raises(DataError, match="is damaged: its sections do not fit together"):
        Store.open(path)


def test_the_second_caller_builds_nothing(tmp_path: Path) -> None:
    games = tmp_path / "game.sgf"
    games.write_text(SGF)
    progress: list[tuple[int, int]] = []

    first = ensure_store(games, tmp_path / "cache", lambda *n: progress.append(n))
    second = ensure_store(str(games), tmp_path / "cache", lambda *n: progress.append(n))

    assert first == second
    assert progress == [(1, 5)]
    assert Store.open(first).path.read_bytes().startswith(MAGIC)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    for name in ("one.sgf", "two.sgf"):
        (tmp_path / name).write_text(SGF)
    one = ensure_store(tmp_path / "one.sgf", tmp_path / "cache")

    assert ensure_store(tmp_path / "two.sgf", tmp_path / "cache") == one

    (tmp_path / "two.sgf").write_text(SGF.replace("B[pq]", "B[qp]"))
    os.utime(tmp_path / "two.sgf", ns=(1, 1))
    assert ensure_store(tmp_path / "two.sgf", tmp_path / "cache") != one


def test_an_unchanged_archive_is_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    games = tmp_path / "game.sgf"
    games.write_text(SGF)
    first = ensure_store(games, tmp_path / "cache")
    monkeypatch.delattr(build_module, "content_key")

    assert ensure_store(games, tmp_path / "cache") == first


def test_a_reader_that_reads_otherwise_reads_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "game.sgf").write_text(SGF)
    first = find_store(tmp_path / "game.sgf", tmp_path / "cache")
    for module in (sgf, build_module):
        monkeypatch.setattr(module, "READER_VERSION", b"another")

    assert find_store(tmp_path / "game.sgf", tmp_path / "cache") != first


def test_a_store_file_stands_for_itself(store: Store, tmp_path: Path) -> None:
    assert ensure_store(store.path, tmp_path / "cache") == store.path
    assert not list(tmp_path.glob("cache/*.store"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    (tmp_path / "game.sgf").write_text(SGF)

    with pytest.raises(DataError, match=r"must be writable, but .*file/cache.*data\.cache_dir"):
        ensure_store(tmp_path / "game.sgf", blocked / "cache")


def test_four_processes_at_once_build_one_store(tmp_path: Path) -> None:
    games = tmp_path / "game.sgf"
    games.write_text(SGF)
    fork = multiprocessing.get_context("fork")
    gate = fork.Barrier(4)
    results = fork.SimpleQueue()

    def ask() -> None:
        built = []

        def progress(*counts: int) -> None:
            built.append(counts)
            time.sleep(0.2)

        gate.wait()
        path = ensure_store(games, tmp_path / "cache", progress)
        results.put((str(path), Store.open(path, verify=True).n_positions, len(built)))

    processes = [fork.Process(target=ask) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get() for _ in processes]
    for process in processes:
        process.join()

    assert len({(path, n) for path, n, _ in answers}) == 1
    assert sum(n_built for _, _, n_built in answers) == 1


def test_what_is_asked_of_the_games_is_part_of_the_key(tmp_path: Path) -> None:
    games = tmp_path / "games.sgf"
    repeated = SGF.replace(";W[dd]", ";B[dd];W[cc]")
    games.write_text(SGF + SGF.replace("RE[", "KM[7.5]RE[") + repeated)
    cache = tmp_path / "cache"
    every = Store.open(ensure_store(games, cache, filter={"min_moves": 0, "komi": None}))
    even = Store.open(ensure_store(games, cache, filter={"komi": [7, 8]}))
    strict = Store.open(ensure_store(games, cache, strict=True))

    assert (every.n_games, even.n_games, strict.n_games) == (3, 1, 2)
    assert len({every.path, even.path, strict.path}) == 3
    told = [store.info["source"] for store in (every, even, strict)]
    assert told == [str(games), f"{games} (komi=[7, 8])", f"{games} (strict)"]
    assert ensure_store(games, cache) == every.path
    assert even.info["drops"] == {"komi unknown": 2}
    assert even.info["examples"] == {"komi unknown": f"{games}#1: "}
    assert list(strict.info["drops"]) == ["truncated"]


def test_a_store_that_has_changed_is_verified_before_it_is_used(tmp_path: Path) -> None:
    games = tmp_path / "game.sgf"
    games.write_text(SGF)
    path = ensure_store(games, tmp_path / "cache")

    damaged(path, 4096 + 92 + 7, b"\xff")

    for _ in range(2):
        with pytest.raises(DataError, match="section `frames` does not match its checksum"):
            ensure_store(games, tmp_path / "cache")


def test_a_long_source_does_not_fill_the_header(tmp_path: Path) -> None:
    drops = [Drop("棋" * 999, f"reason {i}", "\udce9" * 99) for i in range(20)]
    source = "囲碁\udce9" * 3000

    store = build_store(tmp_path / "some.store", [*drops, game(5)], source=source)

    assert len(store.info["drops"]) == 20
    assert store.info["source"].startswith("囲碁")

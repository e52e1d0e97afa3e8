"""Games as the engine keeps them: its recorded verdicts, and the engine itself."""

from __future__ import annotations

import gzip
import multiprocessing
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzsweep.errors import DataError
from lzsweep.go.board import BLACK, PASS, WHITE, format_move
from lzsweep.go.sgf import FRAME_BYTES, Drop, Game, content_key, read_games
from lzsweep.go.sgftree import Chopper, parse_tree
from tests.go.engine import CASES, PROJECT, dump_supervised, game_records, is_alive, shared_data

BUNDLED = PROJECT / "lzsweep" / "data" / "gnugo_selfplay.sgf.gz"
PLAIN = b"(;GM[1]FF[4]SZ[19]KM[6.5]RE[B+R];B[pd];W[dd];B[pq];W[dp];B[qk])"
N_MOVES_IN_VERDICT = 8


def read_bytes(tmp_path: Path, data: bytes, *, strict: bool = False) -> list[Game | Drop]:
    path = tmp_path / "games.sgf"
    path.write_bytes(data)
    return list(read_games(path, strict=strict))


def only_game(tmp_path: Path, data: bytes) -> Game:
    (game,) = read_bytes(tmp_path, data)
    assert isinstance(game, Game), game
    return game


def only_drop(tmp_path: Path, data: bytes, *, strict: bool = False) -> Drop:
    (drop,) = read_bytes(tmp_path, data, strict=strict)
    assert isinstance(drop, Drop), drop
    return drop


def verdicts() -> list[tuple[str, int, str]]:
    rows = [line.split("\t") for line in (CASES / "VERDICTS.tsv").read_text().splitlines()[2:]]
    return [(name, int(count), moves) for name, count, moves in rows]


@pytest.mark.parametrize(("name", "n_records", "moves"), verdicts())
def test_a_crafted_case_gives_what_the_engine_wrote(name: str, n_records: int, moves: str) -> None:
    games = [game for game in read_games(CASES / name) if isinstance(game, Game)]
    assert sum(len(game.moves) for game in games) == n_records
    labels = [
        f"{'BW'[colour]}{format_move(move)}{'+' if colour == game.winner else '-'}"
        for game in sorted(games, key=lambda game: len(game.moves))
        for colour, move in zip(game.colours, game.moves, strict=True)
    ]
    # The table names the first eight records only.
    assert labels[:N_MOVES_IN_VERDICT] == moves.split()


def test_every_dropped_case_says_why() -> None:
    reasons = {
        item.source.rsplit("/", 1)[-1]: item.reason
        for item in read_games(CASES)
        if isinstance(item, Drop)
    }
    assert reasons == {
        "02_re_01_bptime.sgf#1": "time result",
        "02_re_05_0.sgf#1": "no result",
        "02_re_07_void.sgf#1": "no result",
        "02_re_08_unk.sgf#1": "no result",
        "02_re_09_bpr.sgf#1": "no result",
        "02_re_10_blackpr.sgf#1": "no result",
        "02_re_13_bpr.sgf#1": "no result",
        "07_ha2_ab_second_node.sgf#1": "colours out of turn",
        "16_simple_ko_illegal.sgf#1": "illegal move",
        "19_illegal_only_in_variation.sgf#1": "illegal move",
        "21_starts_white_no_handicap.sgf#1": "colours out of turn",
        "22_size9.sgf#1": "board size",
        "26_gm_chess.sgf#1": "not a go game",
        "28_utf16le.sgf": "unreadable",
        "37_lowercase_props.sgf#1": "no result",
        "40_uppercase_coord.sgf#1": "illegal move",
        "41_off_board.sgf#1": "illegal move",
        "42_one_char.sgf#1": "illegal move",
        "45_empty_file.sgf#1": "unreadable",
        "46_text_only.sgf#1": "unreadable",
        "51_re_in_second_node.sgf#1": "no result",
        "64_sjis_5c_before_first_move.sgf#1": "colours out of turn",
    }


def test_strict_refuses_what_the_engine_cuts_short_or_mislabels() -> None:
    lenient = {item.source for item in read_games(CASES) if isinstance(item, Game)}
    strict = {
        item.source.rsplit("/", 1)[-1].removesuffix("#1"): item.reason
        for item in read_games(CASES, strict=True)
        if isinstance(item, Drop) and item.source in lenient
    }
    assert strict == {
        "09_ha2_black_plays_stones.sgf": "truncated",
        "10_ab_compressed_rect.sgf": "setup misread",
        "12_aw_midgame.sgf": "setup misread",
        "20_wrong_colour_twice.sgf": "truncated",
        "47_resign_move.sgf": "mislabelled",
        "67_colour_repeat_then_resync.sgf": "mislabelled",
    }


def engine_and_ours_agree(sgf: Path, folder: Path) -> int:
    theirs = dump_supervised(sgf, folder)
    games = [item for item in read_games(sgf) if isinstance(item, Game)]
    ours = Counter(record for game in games for record in game_records(game))
    assert theirs - ours == Counter()
    assert ours - theirs == Counter()
    return len(games)


@pytest.mark.engine
@pytest.mark.slow
def test_the_engine_keeps_the_same_positions_of_real_games(tmp_path: Path) -> None:
    # People's games of both servers, handicap and variations among them.
    collection = tmp_path / "real.sgf"
    with collection.open("wb") as out:
        for name, n_games in (("kgs_6d_2017_1000.sgf.gz", 130), ("tygem_9d_2008_500.sgf.gz", 75)):
            texts = list(Chopper(gzip.decompress(shared_data(name).read_bytes())))
            out.writelines(b"(;" + text + b"\n" for text in texts[:: len(texts) // n_games])
    assert engine_and_ours_agree(collection, tmp_path) >= 200


@pytest.mark.engine
@pytest.mark.slow
def test_the_engine_keeps_the_same_positions_of_bundled_games(tmp_path: Path) -> None:
    """Whole games that everybody has; a third of them, for the time it takes."""
    texts = list(Chopper(gzip.decompress(BUNDLED.read_bytes())))[::3]
    collection = tmp_path / "bundled.sgf"
    collection.write_bytes(b"".join(b"(;" + text + b"\n" for text in texts))
    assert engine_and_ours_agree(collection, tmp_path) == 60


@pytest.mark.engine
def test_the_engine_keeps_the_same_positions_of_broken_games(tmp_path: Path) -> None:
    """Games that are damaged at random; one good game keeps the engine from its known abort."""
    rng = random.Random(20)
    pieces = b";|B[dd]|W[pp]|AB[qq]|AW[dd][pd]|AE[pd]|PL[W]|KM[5]|SZ[19]|GM[1]|HA[2]|;C[x]|B[]"
    pieces += b"|W[tt]|(;W[dd])|(;B[pd];W[pd])|TM[1]|TM[x]|BL[q]|RE[W+R]|;B[ab];W[ba];B[ac]| |\n"
    texts = [path.read_bytes().strip() for path in sorted(CASES.glob("*.sgf"))]
    texts = [text for text in texts if text.startswith(b"(;") and text.endswith(b")")]
    games = [PLAIN]
    while len(games) < 600:
        text = bytearray(rng.choice(texts))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(2, len(text))
            text[at:at] = rng.choice(pieces.split(b"|"))
        # Unbalanced brackets would hide all later games.
        if list(Chopper(bytes(text) + PLAIN))[1:] == [PLAIN[2:]]:
            games.append(bytes(text))
    collection = tmp_path / "broken.sgf"
    collection.write_bytes(b"\n".join(games))
    assert engine_and_ours_agree(collection, tmp_path) >= 100


def test_the_bundled_games_are_all_good() -> None:
    items = list(read_games(BUNDLED, strict=True))
    assert len(items) == 180
    assert sum(len(item.moves) for item in items if isinstance(item, Game)) == 38_181
    assert {item.winner for item in items if isinstance(item, Game)} == {BLACK, WHITE}


def test_a_game_holds_the_board_before_each_move(tmp_path: Path) -> None:
    game = only_game(tmp_path, b"(;RE[W+3.5]KM[650]HA[2]DT[2008-03-05]BR[9d]AB[aa][ba];W[ab];B[])")
    assert (game.setup_black, game.setup_white) == (3 << 18 * 19, 0)
    assert (game.colours, list(game.moves), game.winner) == (b"\x01\x00", [17 * 19, PASS], WHITE)
    boards = np.frombuffer(game.frames, np.uint8).reshape(2, FRAME_BYTES)
    black, white = (
        np.unpackbits(half, axis=1, bitorder="little")[:, :361] for half in np.hsplit(boards, 2)
    )
    assert [black.sum(1).tolist(), white.sum(1).tolist()] == [[2, 2], [0, 1]]
    assert white[1].argmax() == 17 * 19
    assert (game.komi, game.handicap, game.date) == (6.5, 2, "2008-03-05")
    assert (game.black_rank, game.white_rank) == ("9d", None)
    assert np.asarray(game.moves, dtype=np.uint16).tolist() == [17 * 19, PASS]


def test_metadata_that_makes_no_sense_is_left_out(tmp_path: Path) -> None:
    game = only_game(tmp_path, b"(;RE[B+1]KM[1e99]HA[-3]DT[March]CA[none]BR[\xb6\xce];B[aa])")
    assert (game.komi, game.handicap, game.date, game.black_rank) == (None, None, None, "\u6bb5")


def test_the_key_names_the_content_not_the_file(tmp_path: Path) -> None:
    game = only_game(tmp_path, PLAIN)
    same = only_game(tmp_path, PLAIN.replace(b"GM[1]", b"PB[x]C[y]") + b"\n")
    won = only_game(tmp_path, PLAIN.replace(b"B+R", b"W+R"))
    longer = only_game(tmp_path, PLAIN.replace(b"[qk]", b"[qk];W[aa]"))
    assert game.key == same.key
    assert len({game.key, won.key, longer.key}) == 3
    assert game.key.hex() == "4a1a30a9a693f1dd904f9414ddd9a7db"


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"(;RE[B+R];B[aa];W[aa])", "illegal move", "W A19 on a stone of the other colour"),
        (b"(;RE[B+R];B[aa];W[bb];B[aa])", "illegal move", "move 3, B A19: occupied"),
        (b"(;RE[B+R]TM[-];B[aa])", "bad property", r"TM\[-\] must be a number"),
        (b"(;RE[B+R]SZ[13];B[aa])", "board size", r"SZ\[13\]"),
        (b"(;RE[B+R])", "no moves", "no move"),
        (b"(;RE[B+R];C[x])", "no moves", "no move"),
        (b"\xff\xfe(\x00;\x00", "unreadable", "UTF-16"),
    ],
)
def test_a_drop_says_what_and_where(tmp_path: Path, data: bytes, reason: str, detail: str) -> None:
    drop = only_drop(tmp_path, data)
    assert drop.reason == reason
    assert re.search(detail, drop.detail)
    assert "games.sgf" in drop.source


def test_suicide_in_the_main_line_is_illegal(tmp_path: Path) -> None:
    drop = only_drop(tmp_path, b"(;RE[B+R];B[ab];W[pp];B[ba];W[aa])")
    assert drop.detail == "move 4, W A19: suicide"


def test_games_lost_behind_a_wrong_parenthesis_are_reported(tmp_path: Path) -> None:
    cut = read_bytes(tmp_path, PLAIN + PLAIN[:-1])
    assert [type(item) for item in cut] == [Game, Drop]
    assert isinstance(cut[1], Drop)
    assert "no closing" in cut[1].detail
    extra = read_bytes(tmp_path, PLAIN + b")" + PLAIN)
    assert [type(item) for item in extra] == [Game, Drop]
    # At the end of the file a parenthesis too many loses nothing.
    assert [type(item) for item in read_bytes(tmp_path, PLAIN + b")")] == [Game]


def test_only_the_first_999_moves_of_a_game_are_followed(tmp_path: Path) -> None:
    passes = b";B[];W[]" * 600
    assert len(only_game(tmp_path, b"(;RE[B+R]" + passes + b")").moves) == 1000
    assert only_drop(tmp_path, b"(;RE[B+R]" + passes + b")", strict=True).reason == "truncated"


def test_one_enormous_game_is_refused_before_it_is_read(tmp_path: Path) -> None:
    drop = only_drop(tmp_path, b"(;RE[B+R]" + b";" * (9 << 20) + b")")
    assert (drop.reason, drop.detail) == ("unreadable", f"one game of {(9 << 20) + 8} bytes")


def test_a_game_of_too_many_nodes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    text = b"(;RE[B+R]" + b";(" * 60_000 + b")" * 60_001
    drop = only_drop(tmp_path, text)
    assert (drop.reason, drop.detail) == ("unreadable", "one game of 120000 nodes")


def test_the_tree_keeps_variations_and_escapes() -> None:
    root = parse_tree(b"RE[B\\]+];B[aa](;W[bb];B[cc])(;W[dd])")
    assert root.properties == {b"RE": [b"B]+"]}
    (first,) = root.children
    assert [child.properties for child in first.children] == [{b"W": [b"bb"]}, {b"W": [b"dd"]}]


def test_many_processes_give_the_same_games_in_the_same_order() -> None:
    alone = list(read_games(BUNDLED, workers=1))
    assert list(read_games(BUNDLED, workers=3)) == alone


def test_reading_may_stop_in_the_middle() -> None:
    games = read_games(BUNDLED, workers=2)
    assert isinstance(next(games), Game)
    assert multiprocessing.active_children()
    games.close()  # type: ignore[attr-defined]


def _read_and_wait(pids: Connection) -> None:
    games = read_games(BUNDLED, workers=2)
    next(games)
    pids.send([process.pid for process in multiprocessing.active_children()])
    time.sleep(1000)


def test_workers_do_not_outlive_a_killed_reader() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    reader = context.Process(target=_read_and_wait, args=(theirs,))
    reader.start()
    assert ours.poll(60)
    pids = ours.recv()
    reader.kill()
    reader.join()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def test_a_content_key_hangs_on_content_alone(tmp_path: Path) -> None:
    folder = tmp_path / "games"
    folder.mkdir()
    (folder / "a.sgf").write_bytes(PLAIN)
    (folder / "b.sgf").write_bytes(PLAIN[:-1])
    key = content_key(folder)
    shutil.copytree(folder, tmp_path / "moved")
    (tmp_path / "moved" / "a.sgf").rename(tmp_path / "moved" / "z.sgf")
    assert content_key(tmp_path / "moved") == key
    (tmp_path / "moved" / "z.sgf").write_bytes(PLAIN + b" ")
    assert content_key(tmp_path / "moved") != key
    assert len(key) == 32


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_text_gives_games_or_drops_and_never_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = bytearray(PLAIN * 2)
    for at, piece in data.draw(
        st.lists(st.tuples(st.integers(0, len(text)), st.binary(max_size=6)), max_size=6)
    ):
        text[at : at + len(piece) // 2] = piece
    items = read_bytes(tmp_path_factory.getbasetemp(), bytes(text))
    for item in items:
        assert isinstance(item, Drop) or len(item.frames) == FRAME_BYTES * len(item.moves) > 0


def test_a_missing_path_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a data path must exist, but .*/nothing does not"):
        read_games(tmp_path / "nothing")


@pytest.fixture(autouse=True)
def _no_stray_processes() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()

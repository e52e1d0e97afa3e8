from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lzsweep.errors import ConfigError
from lzsweep.go.game import Drop, Game, read_game
from lzsweep.go.rank import rank_level
from lzsweep.go.selection import Filter, select
from lzsweep.go.sgftree import Chopper

MOVES = ";B[pd];W[dp];B[pq];W[dd]"


def game(properties: str = "", moves: str = MOVES) -> Game:
    (text,) = Chopper(f"(;GM[1]SZ[19]RE[B+R]{properties}{moves})".encode())
    read = read_game(text, "here#1")
    assert isinstance(read, Game), read
    return read


@pytest.mark.parametrize(
    ("limits", "properties", "reason"),
    [
        ({}, "", None),
        ({"min_moves": 4}, "", None),
        ({"min_moves": 5}, "", "too few moves"),
        ({"min_rank": "6d"}, "BR[6d]WR[9d]", None),
        ({"min_rank": "6d"}, "BR[1p]WR[9 dan]", None),
        ({"min_rank": "6d"}, "BR[七段]WR[9段]", None),
        ({"min_rank": "6d"}, "BR[6d]WR[5d]", "rank too low"),
        ({"min_rank": "5k"}, "BR[4k]WR[6k]", "rank too low"),
        ({"min_rank": "5k"}, "BR[4k]WR[1d]", None),
        ({"min_rank": "6d"}, "BR[6d]", "rank unknown"),
        ({"min_rank": "6d"}, "BR[6d]WR[strong]", "rank unknown"),
        ({"komi": [5.5, 7.5]}, "KM[6.5]", None),
        ({"komi": [5.5, 7.5]}, "KM[650]", None),
        ({"komi": [5.5, 7.5]}, "KM[0.5]", "komi out of range"),
        ({"komi": [5.5, 7.5]}, "", "komi unknown"),
        ({"dates": ["2008", "2008"]}, "DT[2008-12-31]", None),
        ({"dates": [2008, 2010]}, "DT[2007-12-31]", "date out of range"),
        ({"dates": ["2008-03", "2008-03-15"]}, "DT[2008-03-15]", None),
        ({"dates": ["2008-03", "2008-03-15"]}, "DT[2008-03-16]", "date out of range"),
        ({"dates": ["2008", "2010"]}, "", "date unknown"),
        ({"handicap": [0, 0]}, "", None),
        ({"handicap": [0, 0]}, "HA[2]AB[dd][pp]PL[B]", "handicap out of range"),
        ({"handicap": [0, 0]}, "AB[aa][bb]PL[B]", "handicap out of range"),
        ({"handicap": [2, 4]}, "AB[aa][bb]PL[B]", None),
    ],
)
def test_a_limit_leaves_out_what_is_beyond_it(
    limits: dict[str, Any], properties: str, reason: str | None
) -> None:
    moves = ";B[pd];W[dp];B[qq];W[dc]"
    refused = Filter.of(limits).refuse(game(properties, moves))

    assert (refused.reason if refused else None) == reason
    assert refused is None or refused.source == "here#1"


def test_ranks_have_an_order() -> None:
    texts = ["30k", "5 kyu", "1k", "1d", "六段", "9 dan", "1p", "9p"]
    levels = [rank_level(text) for text in texts]

    assert None not in levels
    assert levels == sorted(set(levels), key=lambda level: level or 0)
    assert [rank_level(text) for text in ("", "NR", "?", "12", "9 dogs")] == [None] * 5


def test_refused_games_are_counted_with_the_readers_drops() -> None:
    games: list[Game | Drop] = [game(), Drop("a", "no moves", ""), game("KM[7]"), game("KM[0]")]

    counts = Counter(
        "kept" if isinstance(item, Game) else item.reason
        for item in select(games, Filter(komi=(6, 8)))
    )

    assert counts == {
        "kept": 1,
        "no moves": 1,
        "komi unknown": 1,
        "komi out of range": 1,
    }


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_rank": "strong"}, "`min_rank` must be like 5k, 6d or 1p, but got 'strong'"),
        ({"komi": 6.5}, r"`komi` must be a pair \[lowest, highest\], but got 6.5"),
        ({"komi": [7.5, 5.5]}, "`lowest <= highest` must hold for `komi`"),
        ({"dates": ["2008-1", "2009"]}, "`dates` must be like 2008"),
        ({"dates": ["2009", "2008"]}, "`lowest <= highest` must hold for `dates`"),
        ({"handicap": ["0", "2"]}, "`handicap` must be a pair"),
        ({"min_moves": "many"}, "`min_moves` must be a whole number >= 0, but got 'many'"),
        ({"min_moves": -1}, "`min_moves` must be a whole number >= 0, but got -1"),
        ({"komi": [float("nan"), 7]}, "`komi` must be a pair"),
        ({"komi": [True, 7]}, "`komi` must be a pair"),
        ({"handicap": [-2, 0]}, "`handicap` must not be negative"),
        ({"dates": ["2008-13", "2009"]}, "`dates` must be like 2008"),
        ({"dates": ["2008", "2009-02-30"]}, "`dates` must be like 2008"),
        ({"rank": "6d"}, r"data\.filter takes min_moves, .*but got rank"),
    ],
)
def test_a_limit_that_makes_no_sense(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Filter.of(limits)


def test_only_set_limits_are_told() -> None:
    assert Filter.of({"min_moves": 0, "komi": None}).limits() == {}
    assert Filter.of({"komi": [6, 7]}).limits() == {"komi": (6, 7)}

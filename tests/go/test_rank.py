"""Ranks in every encoding that collections come in."""

from __future__ import annotations

import pytest

from lzsweep.go.game import Game, read_game
from lzsweep.go.rank import decode_rank

WRITTEN = [
    ("9段", "utf-8"),
    ("9段", "gb18030"),
    ("9级", "gb18030"),
    ("九段", "gb18030"),
    ("9段", "big5"),
    ("9級", "big5"),
    ("9段", "shift_jis"),
    ("3級", "shift_jis"),
    ("初段", "shift_jis"),
    ("七段", "euc_jp"),
    ("9단", "euc_kr"),
    ("12급", "euc_kr"),
    ("9d", "ascii"),
]


@pytest.mark.parametrize(
    "said", ["", "right", "latin-1", "utf-8", "gb2312", "big5", "none", "hex"]
)
@pytest.mark.parametrize(("rank", "encoding"), WRITTEN)
def test_a_rank_is_read_whatever_the_file_says_of_itself(
    rank: str, encoding: str, said: str
) -> None:
    charset = {"": "", "right": f"CA[{encoding}]"}.get(said, f"CA[{said}]")
    text = b"GM[1]RE[B+1]" + charset.encode() + b"BR[" + rank.encode(encoding) + b"];B[aa]"

    game = read_game(text, "here")

    assert isinstance(game, Game), game
    assert game.black_rank == rank
    assert game.white_rank is None


@pytest.mark.parametrize(
    ("value", "charset", "text"),
    [
        (b"strong", "", "strong"),
        ("stärker".encode("latin-1"), "latin-1", "stärker"),
        ("強".encode(), "utf-8", "強"),
        (b"\xff\xff", "utf-8", "ÿÿ"),
    ],
)
def test_what_is_no_rank_is_left_as_it_is_said_to_be(
    value: bytes, charset: str, text: str
) -> None:
    assert decode_rank(value, charset) == text

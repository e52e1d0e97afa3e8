"""The bitboard against a slow board that follows the rules to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzsweep.go.board import (
    BLACK,
    BOARD_SIZE,
    N_MOVES,
    N_POINTS,
    NO_KO,
    PASS,
    WHITE,
    Board,
    IllegalMoveError,
    format_move,
    parse_move,
)

Stones = dict[tuple[int, int], int]


class SlowBoard:
    """Stones in a dict, groups by search; simple ko by comparing whole positions."""

    def __init__(self) -> None:
        self.stones: Stones = {}
        self.before_last: Stones | None = None

    def play(self, move: int, colour: int) -> bool:
        if move == PASS:
            self.before_last = None
            return True
        y, x = divmod(move, BOARD_SIZE)
        if (x, y) in self.stones:
            return False
        stones = self.stones | {(x, y): colour}
        for near in _around(x, y):
            if stones.get(near) == 1 - colour and not _liberties(stones, near):
                for dead in _group(stones, near):
                    del stones[dead]
        if not _liberties(stones, (x, y)) or stones == self.before_last:
            return False
        self.before_last, self.stones = self.stones, stones
        return True

    def bitboard(self, colour: int) -> int:
        return sum(1 << (y * BOARD_SIZE + x) for (x, y), c in self.stones.items() if c == colour)


def _around(x: int, y: int) -> list[tuple[int, int]]:
    near = [(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)]
    return [(u, v) for u, v in near if 0 <= u < BOARD_SIZE and 0 <= v < BOARD_SIZE]


def _group(stones: Stones, start: tuple[int, int]) -> set[tuple[int, int]]:
    found, todo = {start}, [start]
    while todo:
        for near in _around(*todo.pop()):
            if near not in found and stones.get(near) == stones[start]:
                found.add(near)
                todo.append(near)
    return found


def _liberties(stones: Stones, start: tuple[int, int]) -> int:
    return sum(near not in stones for at in _group(stones, start) for near in _around(*at))


def play_all(names: str) -> Board:
    """Play `B:Q16 W:D4 ...`."""
    board = Board()
    for name in names.split():
        board.play(parse_move(name[2:]), "BW".index(name[0]))
    return board


# Few points, so that captures, kos and suicides are frequent: a corner, an edge and the middle.
_CROWDED = [y * BOARD_SIZE + x for y in range(4) for x in range(4)]
_CROWDED += [y * BOARD_SIZE + x for y in range(8, 11) for x in range(BOARD_SIZE - 3, BOARD_SIZE)]
_MOVES = st.lists(
    st.tuples(st.sampled_from([*_CROWDED, PASS]), st.sampled_from([BLACK, WHITE])), max_size=90
)


@given(_MOVES)
@settings(max_examples=300, deadline=None)
def test_every_move_has_the_same_outcome_as_on_the_slow_board(
    moves: list[tuple[int, int]],
) -> None:
    # The two ko rules agree only when colours alternate; the colour drawn decides who begins.
    board, slow = Board(), SlowBoard()
    colour = moves[0][1] if moves else BLACK
    for move, _ in moves:
        legal = board.is_legal(move, colour)
        assert slow.play(move, colour) == legal, format_move(move)
        if legal:
            board.play(move, colour)
            colour = 1 - colour
        assert (board.black, board.white) == (slow.bitboard(BLACK), slow.bitboard(WHITE))


@given(_MOVES)
@settings(max_examples=100, deadline=None)
def test_a_refused_move_changes_nothing(moves: list[tuple[int, int]]) -> None:
    board = Board()
    for move, colour in moves:
        before = (board.black, board.white, board.ko)
        try:
            board.play(move, colour)
        except IllegalMoveError:
            assert (board.black, board.white, board.ko) == before


def test_a_stone_without_liberties_is_taken() -> None:
    board = play_all("B:A1 W:A2 B:Q16 W:B1")
    assert board.black == 1 << parse_move("Q16")


def test_capture_of_several_groups_at_once_forbids_nothing() -> None:
    board = play_all("B:B1 W:A1 B:A3 W:C1 B:B3 W:D1 B:C2 W:Q16 B:D2 W:Q4 B:E1 W:A2 B:B2")
    assert board.white == 1 << parse_move("Q16") | 1 << parse_move("Q4")
    assert board.ko == NO_KO


def test_the_ko_may_not_be_taken_back_at_once_but_after_a_move_elsewhere() -> None:
    board = play_all("B:C3 W:D3 B:B2 W:E2 B:C1 W:D1 B:D2 W:C2")
    assert board.ko == parse_move("D2")
    with pytest.raises(IllegalMoveError, match=r"black cannot play D2: the ko forbids it\."):
        board.play(parse_move("D2"), BLACK)
    board.play(PASS, BLACK)
    board.play(PASS, WHITE)
    board.play(parse_move("D2"), BLACK)
    assert board.ko == parse_move("C2")


def test_suicide_and_occupied_points_are_refused() -> None:
    board = play_all("B:A2 B:B1")
    with pytest.raises(IllegalMoveError, match=r"white cannot play A1: it is suicide\."):
        board.play(parse_move("A1"), WHITE)
    with pytest.raises(IllegalMoveError, match=r"white cannot play A2: the point is occupied\."):
        board.play(parse_move("A2"), WHITE)
    board.play(parse_move("A1"), BLACK)


def test_a_full_board_but_one_point_can_be_taken() -> None:
    everything_but_a1 = (1 << N_POINTS) - 2
    board = Board(white=everything_but_a1)
    board.play(0, BLACK)
    assert (board.black, board.white) == (1, 0)


def test_names_of_moves() -> None:
    names = [format_move(move) for move in (0, 8, 18, 313, 360, PASS)]
    assert names == ["A1", "J1", "T1", "K17", "T19", "pass"]
    assert [parse_move(format_move(move)) for move in range(N_MOVES)] == list(range(N_MOVES))


@pytest.mark.parametrize("text", ["", "I5", "A0", "A20", "AA", "U1", "5", "A-1", "resign"])
def test_no_move(text: str) -> None:
    with pytest.raises(ValueError, match="a move must be A1 to T19"):
        parse_move(text)


def test_a_board_refuses_overlapping_or_too_large_bitboards() -> None:
    for black, white in ((1, 1), (1 << N_POINTS, 0), (-1, 0)):
        with pytest.raises(ValueError, match="disjoint bitboards"):
            Board(black, white)
    with pytest.raises(ValueError, match="a move must be 0 to 361, but got 362"):
        Board().play(362, BLACK)

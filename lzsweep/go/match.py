"""A referee: two GTP engines play a game, and every move is checked against our own rules.

A game ends with two passes, a resignation, or at a limit of moves, so that engines which do not
know when to pass cannot play for ever. A move that the rules refuse is never passed on: the game
ends there with an error that names who played it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lzsweep.go.board import BLACK, BOARD_SIZE, PASS, WHITE, Board, IllegalMoveError, parse_move
from lzsweep.go.gtp import Engine, GtpError

SIDES: Final = ("black", "white")

End = Literal["two passes", "resignation", "move limit"]


@dataclass(frozen=True, slots=True)
class Played:
    """A game between engines.

    Attributes:
        moves: Points or `PASS`, black's first.
        end: Why it is over.
        winner: `BLACK` or `WHITE` after a resignation; else the score has to tell.
    """

    moves: tuple[int, ...]
    end: End
    winner: int | None = None


def play_game(
    engines: Sequence[Engine], *, komi: float = 7.5, max_moves: int = 722, move_timeout_s: float
) -> Played:
    """Let `engines` play, black's first.

    Raises:
        GtpError: If an engine dies, hangs, refuses a legal move or answers with no move.
        IllegalMoveError: If an engine plays a move that our rules refuse.
    """
    for engine in engines:
        engine.ask(f"boardsize {BOARD_SIZE}")
        engine.ask("clear_board")
        engine.ask(f"komi {komi}")
    board = Board()
    moves: list[int] = []
    while len(moves) < max_moves and moves[-2:] != [PASS, PASS]:
        colour = len(moves) % 2
        answer = engines[colour].ask(f"genmove {SIDES[colour]}", timeout_s=move_timeout_s)
        if answer.lower() == "resign":
            return Played(tuple(moves), "resignation", WHITE if colour == BLACK else BLACK)
        place = f"{SIDES[colour]}'s move {len(moves) + 1}"
        try:
            move = parse_move(answer)
            board.play(move, colour)
        except IllegalMoveError as e:
            raise IllegalMoveError(f"{place} breaks the rules: {e}") from e
        except ValueError as e:
            raise GtpError(f"{place} is none: {e}") from e
        engines[1 - colour].ask(f"play {SIDES[colour]} {answer}", timeout_s=move_timeout_s)
        moves.append(move)
    return Played(tuple(moves), "two passes" if moves[-2:] == [PASS, PASS] else "move limit")

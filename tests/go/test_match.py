"""The referee: how games end, and that no engine gets away with an illegal move."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lzsweep.go.board import PASS, WHITE, IllegalMoveError, parse_move
from lzsweep.go.gtp import Engine, GtpDeadError, GtpError, GtpRefusedError
from lzsweep.go.match import Played, play_game

# Plays the moves of its command line, then dies; refuses what it is told to refuse.
SCRIPT = """
import sys
moves, refused = sys.argv[1].split(), sys.argv[2]
for line in sys.stdin:
    number, command, *arguments = line.split()
    if command == "genmove":
        answer = moves.pop(0)
    else:
        answer = ""
    sign = "?" if refused and refused in arguments else "="
    print(f"{sign}{number} {answer}\\n", flush=True)
    if command == "quit":
        break
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "engine.py"
    path.write_text(SCRIPT)
    return path


def play(
    script: Path, black: str, white: str, *, refused: str = "", max_moves: int = 722
) -> Played:
    command = [sys.executable, "-S", str(script)]
    with Engine([*command, black, ""]) as first, Engine([*command, white, refused]) as second:
        return play_game((first, second), max_moves=max_moves, move_timeout_s=10)


def test_two_passes_end_a_game(script: Path) -> None:
    played = play(script, "Q16 pass D16 PASS", "D4 Q4 pass")

    points = [parse_move(name) for name in ("Q16", "D4", "pass", "Q4", "D16")]
    assert played == Played((*points, PASS, PASS), "two passes")


def test_a_resignation_and_the_limit_end_a_game(script: Path) -> None:
    assert play(script, "Q16 resign", "D4") == Played(
        (parse_move("Q16"), parse_move("D4")), "resignation", WHITE
    )
    assert play(script, "Q16 Q4", "D4", max_moves=3).end == "move limit"


@pytest.mark.parametrize(
    ("black", "white", "message"),
    [
        ("Q16", "Q16", "white's move 2 breaks the rules: white cannot play Q16: the point is"),
        ("B1 A2", "Q16 A1", "white's move 4 breaks the rules: .* it is suicide"),
    ],
)
def test_an_illegal_move_ends_the_game(script: Path, black: str, white: str, message: str) -> None:
    with pytest.raises(IllegalMoveError, match=message):
        play(script, black, white)


def test_engines_that_fail_are_told(script: Path) -> None:
    with pytest.raises(GtpError, match=r"black's move 1 is none: .*'Z99'"):
        play(script, "Z99", "")
    with pytest.raises(GtpRefusedError, match="refuses `play black Q16`"):
        play(script, "Q16", "D4", refused="Q16")
    with pytest.raises(GtpDeadError, match=r"died .* at `genmove black`"):
        play(script, "Q16", "D4")

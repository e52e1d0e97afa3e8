"""The maker of training games."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from lzsweep.errors import DataError
from lzsweep.go import selfplay
from lzsweep.go.gtp import GtpError
from lzsweep.go.selfplay import Plan, make_collection, plan_game
from lzsweep.go.sgf import Game, read_games
from tests.go.engine import find_program


def instant_game(plan: Plan) -> str:
    return selfplay._format_sgf(plan, [*plan.opening, 361], "B+0.5")


def test_plans_differ_and_repeat() -> None:
    plans = [plan_game(1, number) for number in range(50)]
    assert plans == [plan_game(1, number) for number in range(50)]
    assert len({(plan.levels, plan.komi, plan.opening) for plan in plans}) > 40
    assert plan_game(2, 0) != plan_game(1, 0)


def test_a_collection_is_filled_up_not_begun_anew(tmp_path: Path) -> None:
    target = tmp_path / "games.sgf.gz"
    assert list(make_collection(target, 3, play=instant_game))[-1] == (3, 3)
    first = gzip.decompress(target.read_bytes())
    played = []

    def play(plan: Plan) -> str:
        played.append(plan.number)
        return instant_game(plan)

    assert list(make_collection(target, 5, play=play))[-1] == (5, 5)
    assert sorted(played) == [3, 4]
    assert gzip.decompress(target.read_bytes()).startswith(first)
    games = [game for game in read_games(target, strict=True) if isinstance(game, Game)]
    assert [tuple(game.moves[:-1]) for game in games] == [
        plan_game(1, number).opening for number in range(5)
    ]


def test_other_games_are_not_added_to(tmp_path: Path) -> None:
    target = tmp_path / "games.sgf.gz"
    list(make_collection(target, 1, seed=2, play=instant_game))
    with pytest.raises(DataError, match=r"games of its own seed \(1\)"):
        list(make_collection(target, 1, play=instant_game))
    target.write_bytes(b"rubbish")
    with pytest.raises(DataError, match="must be a collection made by this program"):
        list(make_collection(target, 1, play=instant_game))


def test_games_finished_before_a_failure_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "games.sgf.gz"

    def play(plan: Plan) -> str:
        if plan.number == 2:
            raise GtpError("the engine died.")
        return instant_game(plan)

    with pytest.raises(GtpError, match=r"the engine died\."):
        list(make_collection(target, 4, workers=1, play=play))
    assert len(list(read_games(target))) >= 2


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none" / "x.sgf.gz"
    assert selfplay.main(["-n", "1", "-o", str(missing)]) == 2
    assert "the folder of" in capsys.readouterr().err
    output = str(tmp_path / "x.sgf.gz")
    assert selfplay.main(["-n", "1", "-o", output, "--program", "no-such-engine"]) == 1
    assert "cannot be started" in capsys.readouterr().err


@pytest.mark.engine
def test_gnugo_plays_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.sgf.gz"
    program = find_program("gnugo")
    arguments = ["-n", "1", "-o", str(output), "--max-moves", "8", "--program", program]
    assert selfplay.main(arguments) == 0
    assert capsys.readouterr().out.endswith(f"1 of 1 games in {output}\n")
    text = gzip.decompress(output.read_bytes())
    assert b"PB[GNU Go 3.8 level" in text
    (game,) = read_games(output, strict=True)
    assert isinstance(game, Game)
    assert len(game.moves) == 8

"""Makes training games: GNU Go against itself, as one SGF collection.

    python -m lzsweep.go.selfplay -n 180 -o games.sgf.gz

Level, seed, komi and the first moves vary from game to game, so that no two games are alike; each
follows from `--seed` and its number alone. GNU Go never resigns here and scores the final position
itself. The file is written anew after each game (its number stands in `GN`), so a run that was
stopped goes on where it was when the same command is typed again. A game takes 10 to 60 seconds of
one core.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lzsweep.errors import DataError, LzsweepError, UserError
from lzsweep.go.board import BOARD_SIZE, PASS, Board, format_move, parse_move
from lzsweep.go.gtp import Engine
from lzsweep.go.sgftree import Chopper

_LEVELS = (0, 0, 1, 1, 2, 3)
_KOMIS = (0.5, 5.5, 6.5, 7.5, 7.5)
_MAX_OPENING_MOVES = 6
_OPENING_LINES = (2, 3, 4, BOARD_SIZE - 5, BOARD_SIZE - 4, BOARD_SIZE - 3)
_MOVE_TIMEOUT_S = 120.0
_SCORE_TIMEOUT_S = 900.0
_NUMBER = re.compile(rb"GN\[gnugo-(\d+)-(\d+)\]")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a game's seed and number settle before it is played."""

    seed: int
    number: int
    levels: tuple[int, int]  # of black, of white
    komi: float
    opening: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"gnugo-{self.seed}-{self.number}"


def plan_game(seed: int, number: int) -> Plan:
    rng = random.Random(f"{seed}/{number}")
    corners = [y * BOARD_SIZE + x for y in _OPENING_LINES for x in _OPENING_LINES]
    opening = tuple(rng.sample(corners, rng.randint(0, _MAX_OPENING_MOVES)))
    levels = (rng.choice(_LEVELS), rng.choice(_LEVELS))
    return Plan(seed, number, levels, rng.choice(_KOMIS), opening)


def play_game(plan: Plan, *, program: str = "gnugo", max_moves: int = 500) -> str:
    """Play one game; give it as SGF.

    Raises:
        GtpError: if the program is missing, dies or hangs.
        IllegalMoveError: if it plays a move that our rules refuse.
    """
    rng_seed = plan.seed * 1_000_003 + plan.number
    command = [program, "--mode", "gtp", "--quiet", "--never-resign", "--chinese-rules"]
    command += ["--komi", f"{plan.komi}", "--seed", f"{rng_seed % 2**31}"]
    board = Board()
    moves: list[int] = []
    with Engine(command, timeout_s=_MOVE_TIMEOUT_S) as engine:
        engine.ask(f"boardsize {BOARD_SIZE}")
        engine.ask(f"komi {plan.komi}")
        for move in plan.opening[:max_moves]:
            engine.ask(f"play {_side(len(moves))} {format_move(move)}")
            board.play(move, len(moves) % 2)
            moves.append(move)
        while len(moves) < max_moves and moves[-2:] != [PASS, PASS]:
            colour = len(moves) % 2
            engine.ask(f"level {plan.levels[colour]}")
            move = parse_move(engine.ask(f"genmove {_side(colour)}"))
            board.play(move, colour)
            moves.append(move)
        ended = moves[-2:] == [PASS, PASS]
        # Where the game was cut off, `final_score` would play it to its end first.
        score = engine.ask(
            "final_score" if ended else "estimate_score", timeout_s=_SCORE_TIMEOUT_S
        )
        result = score.split(" ")[0]
    return _format_sgf(plan, moves, result)


def make_collection(
    target: Path,
    n_games: int,
    *,
    seed: int = 1,
    workers: int | None = None,
    play: Callable[[Plan], str] = play_game,
) -> Iterator[tuple[int, int]]:
    """Fill `target` up with games until it holds those numbered 0 to `n_games - 1`.

    Yields:
        How many games the file holds, of how many, after each game.

    Raises:
        DataError: if `target` exists and holds other games.
        LzsweepError: what `play` raised, once the games under way are finished and stored.
    """
    games = _read_collection(target, seed)
    missing = [number for number in range(n_games) if number not in games]
    yield len(games), n_games
    failure: LzsweepError | None = None
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = {pool.submit(play, plan_game(seed, number)): number for number in missing}
        for future in as_completed(futures):
            if future.cancelled():
                continue
            error = future.exception()
            if isinstance(error, LzsweepError):
                failure = failure or error
                pool.shutdown(wait=False, cancel_futures=True)
                continue
            games[futures[future]] = future.result().encode("utf-8")
            _write_collection(target, games)
            yield len(games), n_games
    if failure:
        raise failure


def _read_collection(target: Path, seed: int) -> dict[int, bytes]:
    if not target.exists():
        return {}
    games = {}
    try:
        data = gzip.decompress(target.read_bytes())
    except (OSError, EOFError) as e:
        raise DataError(f"{target} must be a collection made by this program: {e}.") from e
    for text in Chopper(data):
        name = _NUMBER.search(text)
        if not name or int(name[1]) != seed:
            raise DataError(
                f"a collection is filled up only with games of its own seed ({seed}), but "
                f"{target} holds others; name another file."
            )
        games[int(name[2])] = b"(;" + text + b"\n"
    return games


def _write_collection(target: Path, games: dict[int, bytes]) -> None:
    aside = target.with_name(target.name + ".part")
    data = b"".join(games[number] for number in sorted(games))
    aside.write_bytes(gzip.compress(data, mtime=0))
    aside.replace(target)


def _format_sgf(plan: Plan, moves: Sequence[int], result: str) -> str:
    players = "".join(
        f"P{side}[GNU Go 3.8 level {level}]" for side, level in zip("BW", plan.levels, strict=True)
    )
    header = f"GM[1]FF[4]CA[UTF-8]GN[{plan.name}]SZ[{BOARD_SIZE}]KM[{plan.komi}]RU[Chinese]"
    line = "".join(f";{'BW'[i % 2]}[{_format_point(move)}]" for i, move in enumerate(moves))
    return f"(;{header}{players}RE[{result}]\n{line})\n"


def _format_point(move: int) -> str:
    if move == PASS:
        return ""
    y, x = divmod(move, BOARD_SIZE)
    return f"{chr(97 + x)}{chr(97 + BOARD_SIZE - 1 - y)}"


def _side(number: int) -> str:
    return ("black", "white")[number % 2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lzsweep.go.selfplay", description="GNU Go against itself, as SGF."
    )
    parser.add_argument("-n", "--games", type=int, required=True, help="games in the end")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .sgf.gz file")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other games (1)")
    parser.add_argument("--workers", type=int, help="games played at a time (one a core)")
    parser.add_argument("--max-moves", type=int, default=500, help="then estimate the score (500)")
    parser.add_argument("--program", default="gnugo", help="GNU Go's name or path")
    options = parser.parse_args(arguments)

    def play(plan: Plan) -> str:
        return play_game(plan, program=options.program, max_moves=options.max_moves)

    try:
        if not options.output.parent.is_dir():
            raise UserError(f"the folder of {options.output} must exist; make it first.")
        for done, wanted in make_collection(
            options.output, options.games, seed=options.seed, workers=options.workers, play=play
        ):
            print(f"{done} of {wanted} games in {options.output}", flush=True)
    except LzsweepError as e:
        print(f"selfplay: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

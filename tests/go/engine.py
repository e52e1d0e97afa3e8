"""The real programs that judge us, and how the tests reach them.

A program that is not installed skips its tests on a user's machine and fails them where `CI=true`.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from lzsweep.go.board import BOARD_SIZE, PASS
from lzsweep.go.gtp import Engine
from lzsweep.go.sgf import Game

PROJECT = Path(__file__).resolve().parents[2]
CASES = PROJECT / "tests" / "data" / "sgf-cases"
RECORD_LINES = 19
N_HISTORY = 8

# A plane's first point is the highest bit of its first digit.
_MIRRORED = str.maketrans({f"{n:x}": f"{int(f'{n:04b}'[::-1], 2):x}" for n in range(16)})

# planes (8 own, 8 opponent's), side, move, result
Record = tuple[tuple[int, ...], int, int, int]


def missing(what: str) -> None:
    """Skip the test, or fail it where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


def find_program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/games:/usr/local/games")
    if not found:
        missing(f"the program {name}")
    return str(found)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def shared_data(name: str) -> Path:
    """A file of games that may not be part of the project."""
    folder = Path(os.environ.get("LZSWEEP_SHARED_DATA", PROJECT.parent / "shared" / "data"))
    path = folder / name
    if not path.exists():
        # Never a failure: these games are not for everybody to have.
        pytest.skip(f"{path} is missing (set LZSWEEP_SHARED_DATA)")
    return path


def write_plain_net(path: Path, filters: int = 2, blocks: int = 0) -> Path:
    """A weights file that the engine loads; what it computes does not matter."""
    rng = np.random.default_rng(1)
    convolution = [(filters, 18 * 9)] + [(filters, filters * 9)] * (2 * blocks)
    rows = []
    for out, fan_in in convolution:
        rows += [rng.normal(size=out * fan_in) * 0.1, np.zeros(out), np.zeros(out), np.ones(out)]
    for out, inner in ((2, 362 * 722), (1, 256 * 361)):
        rows += [rng.normal(size=out * filters), np.zeros(out), np.zeros(out), np.ones(out)]
        rows += [rng.normal(size=inner) * 0.01, np.zeros(362 if out == 2 else 256)]
    rows += [rng.normal(size=256) * 0.01, np.zeros(1)]
    text = "\n".join(["1", *(" ".join(f"{value:.4g}" for value in row) for row in rows)])
    path.write_text(text + "\n", encoding="ascii")
    return path


def dump_supervised(sgf: Path, folder: Path) -> Counter[Record]:
    """Every record that the engine makes of a collection.

    The engine lower-cases paths and takes no spaces, so it is run inside `folder` on bare names.
    """
    program = find_program("leelaz")
    shutil.copyfile(sgf, folder / "in.sgf")
    net = write_plain_net(folder / "net.txt")
    command = [program, "--cpu-only", "-g", "-w", net.name, "--noponder", "-t", "1", "-s", "1"]
    done = subprocess.run(
        command,
        cwd=folder,
        input="dump_supervised in.sgf out\nquit\n",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    # With a multiple of 32 games it aborts after the last byte was written.
    assert "Dumped" in done.stdout, (done.stdout[-500:], done.stderr[-500:])
    records: Counter[Record] = Counter()
    for chunk in folder.glob("out.*.gz"):
        data = chunk.read_bytes()
        lines = gzip.decompress(data).decode("ascii").split("\n") if data else []
        for start in range(0, len(lines) - 1, RECORD_LINES):
            records[parse_record(lines[start : start + RECORD_LINES])] += 1
    return records


def game_records(game: Game) -> list[Record]:
    """What the engine's format holds of one of our games."""
    size = len(game.frames) // len(game.moves) // 2
    boards = [
        tuple(
            int.from_bytes(game.frames[at : at + size], "little")
            for at in (number * 2 * size, number * 2 * size + size)
        )
        for number in range(len(game.moves))
    ]
    records = []
    for number, (colour, move) in enumerate(zip(game.colours, game.moves, strict=True)):
        past = boards[max(0, number - N_HISTORY + 1) : number + 1][::-1]
        past += [(0, 0)] * (N_HISTORY - len(past))
        planes = tuple(board[side] for side in (colour, 1 - colour) for board in past)
        records.append((planes, colour, move, 1 if colour == game.winner else -1))
    return records


def parse_record(lines: list[str]) -> Record:
    planes = tuple(
        int(line[89::-1].translate(_MIRRORED), 16) | int(line[90]) << 360 for line in lines[:16]
    )
    return planes, int(lines[16]), lines[17].split(" ").index("1"), int(lines[18])


def start_leelaz(folder: Path, net: str, *options: str) -> Engine:
    command = [find_program("leelaz"), "--cpu-only", "-g", "-w", net]
    return Engine([*command, "--noponder", "-t", "1", "-s", "1", *options], folder=folder)


def set_up(engine: Engine, game: Game, n_moves: int) -> None:
    """Play the first moves of a game, so that the engine knows the history too."""
    engine.ask("clear_board")
    for move, colour in zip(game.moves[:n_moves], game.colours, strict=False):
        y, x = divmod(move, BOARD_SIZE)
        point = "pass" if move == PASS else f"{'abcdefghjklmnopqrst'[x]}{y + 1}"
        engine.ask(f"play {'bw'[colour]} {point}")


def parse_heatmap(notes: str) -> tuple[npt.NDArray[np.int64], float]:
    """`[362]` thousandths of probability, cut off, and the win rate, of leelaz' `heatmap`."""
    rows = re.findall(r"^ *((?:\d+ +){18}\d+) *$", notes, re.MULTILINE)
    # The top row of the board is printed first.
    cells = [[int(cell) for cell in row.split()] for row in reversed(rows)]
    passing = re.search(r"pass: (\d+)", notes)
    winrate = re.search(r"winrate: ([0-9.]+)", notes)
    assert len(cells) == BOARD_SIZE, notes
    assert passing
    assert winrate
    return np.array([*np.concatenate(cells), int(passing[1])]), float(winrate[1])

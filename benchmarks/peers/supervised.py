"""The engine's own way from games to training data: `leelaz`' command `dump_supervised`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np


def find_leelaz() -> str | None:
    """The engine, if it is installed."""
    return shutil.which("leelaz", path=os.environ.get("PATH", "") + ":/usr/games:/usr/local/games")


def dump_seconds(leelaz: str, sgf: Path, folder: Path) -> float:
    """Seconds that the engine takes for a collection, without its start.

    It lower-cases paths, so it runs inside `folder` on bare names.
    """
    shutil.copyfile(sgf, folder / "in.sgf")
    _write_net(folder / "net.txt")
    base = _run(leelaz, folder, "quit\n")
    return _run(leelaz, folder, "dump_supervised in.sgf out\nquit\n") - base


def _run(leelaz: str, folder: Path, commands: str) -> float:
    options = ["--cpu-only", "-g", "-w", "net.txt", "--noponder", "-t", "1", "-s", "1"]
    began = time.perf_counter()
    done = subprocess.run(
        [leelaz, *options], cwd=folder, input=commands, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    # With a multiple of 32 games it aborts after the last byte was written.
    if "dump" in commands and "Dumped" not in done.stdout:
        raise RuntimeError(f"leelaz: {done.stderr[-500:]}")
    return seconds


def _write_net(path: Path) -> None:
    """The smallest network that the engine loads; dumping does not ask it."""
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=2 * 18 * 9), np.zeros(2), np.zeros(2), np.ones(2)]
    for out, inner, n in ((2, 362 * 722, 362), (1, 256 * 361, 256)):
        rows += [rng.normal(size=out * 2), np.zeros(out), np.zeros(out), np.ones(out)]
        rows += [rng.normal(size=inner) * 0.01, np.zeros(n)]
    rows += [rng.normal(size=256) * 0.01, np.zeros(1)]
    text = "\n".join(["1", *(" ".join(f"{value:.4g}" for value in row) for row in rows)])
    path.write_text(text + "\n", encoding="ascii")

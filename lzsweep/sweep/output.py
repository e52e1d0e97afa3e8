"""What a trial prints: into its folder, and never more than fits there.

The process writes into the file itself, so that the words of a crash are in it too. Its worker
looks at the size now and then, and cuts the middle out of a log that grows without end.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_BYTES = 32 * 2**20
"""Size at which a log is cut, ..."""
HEAD_BYTES, TAIL_BYTES = 2**20, 8 * 2**20
"""... and what is kept of its beginning and of its end."""


def take_over_output(log: Path) -> None:
    """Append all that this process writes to stdout and stderr, and where it crashes, to a file.

    Raises:
        OSError: the file cannot be made.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Appending, so that whoever cuts the file moves the place of the next word as well.
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a killed process said is wanted most
    faulthandler.enable(file=2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


@contextmanager
def lent_output(log: Path) -> Iterator[None]:
    """The same for the time of a block.

    Raises:
        OSError: the file cannot be made or written.
    """
    kept = os.dup(1), os.dup(2)
    try:
        take_over_output(log)
        yield
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)


def last_lines(log: Path, n_lines: int, n_bytes: int = 20_000) -> list[str]:
    """The end of a log: its last lines within so many bytes; none where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - n_bytes))
            return file.read().decode(errors="replace").splitlines()[-n_lines:]
    except OSError:
        return []


def bound_log(log: Path) -> None:
    """Cut the middle out of a log that has grown too long; what is written meanwhile may go."""
    with suppress(OSError):
        size = log.stat().st_size
        if size <= MAX_BYTES:
            return
        with log.open("r+b") as file:
            file.seek(size - TAIL_BYTES)
            tail = file.read(TAIL_BYTES).partition(b"\n")[2]
            file.truncate(HEAD_BYTES)
        with log.open("ab") as file:
            file.write(b"\n[... cut by lzsweep: this trial prints too much ...]\n" + tail)

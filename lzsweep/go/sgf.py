"""Games out of SGF files: `read_games` gives what leelaz' `dump_supervised` would learn from.

A `Game` carries its positions already packed; everything else is a `Drop` with a named reason, so
that a count by reason accounts for every game. Reading is spread over the cores when there is
more than a little of it; the order is always that of the files and of the games in them. What is
kept is decided in `game.py`; SGF text is read in `sgftree.py`, archives in `archive.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from lzsweep.errors import LzsweepError
from lzsweep.go.archive import Damage, Document, Paths, content_digest, find_files, read_documents
from lzsweep.go.game import FRAME_BYTES, Drop, Game, read_game
from lzsweep.go.sgftree import Chopper

__all__ = ["FRAME_BYTES", "READER_VERSION", "Drop", "Game", "content_key", "read_games"]

# Part of every content key: a change in what is read from the same files must change it.
READER_VERSION = b"sgf 2"
_BATCH_BYTES = 1 << 16  # SGF text handed to a process at a time, some 50 games
_PARENT_CHECK_S = 1.0

_Item = tuple[str, bytes] | Drop
_Record = Game | Drop


def read_games(
    paths: Paths, *, workers: int | None = None, strict: bool = False
) -> Iterator[Game | Drop]:
    """Read every game of `paths` (files, archives, folders, globs).

    Args:
        paths: One or several.
        workers: Processes to use at most; by default one for each core.
        strict: Refuse also the games that leelaz keeps but cuts short or mislabels.

    Raises:
        DataError: at once, if a path is not there.
        LzsweepError: while iterating, if a worker process was killed.
    """
    files = find_files(paths)
    if workers is None:
        workers = _n_cores()
    return _read_batches(_batches(_items(read_documents(files))), workers, strict)


def content_key(paths: Paths) -> str:
    """32 hex digits that name the content of all files of `paths`, whatever their names."""
    digest = content_digest(find_files(paths))
    return hashlib.blake2b(READER_VERSION + digest, digest_size=16).hexdigest()


def _items(documents: Iterable[Document | Damage]) -> Iterator[_Item]:
    """The texts of the games, each with its source."""
    for document in documents:
        if isinstance(document, Damage):
            yield Drop(document.source, "unreadable", document.detail)
            continue
        source, data = document.source, document.data
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") and b"(;" not in data:
            yield Drop(source, "unreadable", "UTF-16 text; save it as UTF-8")
            continue
        chopper = Chopper(data)
        for number, text in enumerate(chopper, start=1):
            yield f"{source}#{number}", text
        if chopper.problem:
            yield Drop(source, "unreadable", chopper.problem)


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += 0 if isinstance(item, Drop) else len(item[1])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_batch(batch: list[_Item], strict: bool) -> list[_Record]:
    return [
        item if isinstance(item, Drop) else read_game(item[1], item[0], strict=strict)
        for item in batch
    ]


def _read_batches(batches: Iterator[list[_Item]], workers: int, strict: bool) -> Iterator[_Record]:
    first = list(itertools.islice(batches, 2))
    everything = itertools.chain(first, batches)
    # A daemonic process may not have children.
    if workers <= 1 or len(first) < 2 or multiprocessing.current_process().daemon:
        for batch in everything:
            yield from _read_batch(batch, strict)
        return
    # On Linux a fork is ready at once and the workers run nothing but this module's code.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_enter_worker, initargs=(os.getpid(),)
    )
    waiting: deque[Future[list[_Record]]] = deque()
    try:
        for batch in everything:
            waiting.append(pool.submit(_read_batch, batch, strict))
            # The window bounds the memory, however large the collection.
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as e:
        raise LzsweepError(
            "a process that read games was killed, perhaps for want of memory; try again with "
            "fewer workers."
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _enter_worker(parent: int) -> None:
    # The reader itself decides what Ctrl-C means; and an idle worker would outlive a killed one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_without, args=(parent,), daemon=True).start()


def _exit_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

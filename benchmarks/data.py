"""The data side and the training step against their peers: `python -m benchmarks.data`.

Every ratio is of figures measured in one run on one machine, in turn. It prints a table and writes
`build/bench/data.json`; `--keep` also puts the table into `benchmarks/README.md`. `--quick` only
shows that everything runs, and writes `data-quick.json`. Games are the bundled ones, as often as
it takes.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.peers import chunkparser, original, supervised
from benchmarks.table import Row, best_of, choose, per_second, publish
from lzsweep.go.chunks import Records, encode_game, format_binary, write_chunks
from lzsweep.go.sgf import Game, read_games
from lzsweep.train.build import BUNDLED_GAMES, build_store, ensure_store
from lzsweep.train.data import GoData
from lzsweep.train.pieces import chunk_pieces
from lzsweep.train.store import POLICY_SECTIONS, SECTIONS, Store

BATCH = 512
MAX_OPEN_S = 0.1
MAX_GAME_BYTES = 110
MAX_CHUNK_BYTES = 900


class Bench:
    """What the measurements share, in a folder of its own; made when it is first asked for."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder = folder
        self.quick = quick
        self.seconds = 0.2 if quick else 3.0
        self.rounds = 1 if quick else 3

    @cached_property
    def games(self) -> list[Game]:
        return [game for game in read_games(BUNDLED_GAMES) if isinstance(game, Game)]

    @cached_property
    def some_games(self) -> list[Game]:
        return self.games[: 4 if self.quick else 32]

    @cached_property
    def text_chunks(self) -> list[Path]:
        (self.folder / "text").mkdir()
        games = map(encode_game, self.some_games)
        return write_chunks(self.folder / "text" / "train", games, games_per_chunk=4)

    @cached_property
    def parsed(self) -> tuple[original.Positions, float]:
        """The original's data set and the positions a second at which it was parsed."""
        began = time.perf_counter()
        positions = original.Positions(self.text_chunks)
        return positions, len(positions) / (time.perf_counter() - began)

    @cached_property
    def million(self) -> Store:
        """A store of a million positions: the bundled games again and again under other keys."""
        wanted = 50_000 if self.quick else 1_000_000
        return build_store(self.folder / "million.store", _repeat(self.games, wanted), source="")

    def soft(self, n_copies: int) -> Store:
        """A store of policies in which every move was tried, the most that can be."""
        games = [encode_game(game) for game in self.games] * n_copies
        pieces = chunk_pieces(_soften(records, seed) for seed, records in enumerate(games))
        return build_store(self.folder / f"soft{n_copies}.store", pieces, source="")


def batches(bench: Bench) -> Iterator[Row]:
    """Decoded, turned batches a second on one core."""
    data = GoData("bundled", bench.folder / "cache", batch_size=BATCH)
    data.setup("fit")
    ours = _endless(data.train_dataloader())
    positions, _ = bench.parsed
    items = _endless(DataLoader(positions, batch_size=BATCH, shuffle=True))
    records = [format_binary(encode_game(game)) for game in bench.some_games]
    parsed = chunkparser.read_batches(itertools.cycle(records), BATCH)
    measures: list[Callable[[], int]] = [
        lambda: len(data.on_after_batch_transfer(next(ours), 0).planes),
        lambda: len(next(items)[0]),
        lambda: len(next(parsed)[2]) // 4,
    ]
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(cores)})  # for the parser's process too
    rates = best_of(bench.rounds, *(partial(per_second, m, bench.seconds) for m in measures))
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)
    rate, peer, parser = rates
    unit = "positions/s"
    against = "original Dataset + DataLoader, float32"
    yield Row("batches_vs_original", against, rate, peer, unit, ">= 60")
    against = "leela-zero chunkparser, binary, uint8"
    yield Row("batches_vs_chunkparser", against, rate, parser, unit, ">= 8")


def opening(bench: Bench) -> Iterator[Row]:
    """Seconds from a store on disk to its first batch; the original parses at every start."""
    path = bench.million.path
    GoData(path, bench.folder / "cache", batch_size=BATCH).prepare_data()

    def once() -> float:
        began = time.perf_counter()
        data = GoData(path, bench.folder / "cache", batch_size=BATCH)
        data.setup("fit")
        data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        return time.perf_counter() - began

    ours = min(once() for _ in range(7))
    _, rate = bench.parsed
    peer = bench.million.n_positions / rate
    limit = min(1 / 1000, MAX_OPEN_S / peer)  # a thousand times, and 0.1 s
    against = f"parsing {bench.million.n_positions:,} positions at the original's rate, all cores"
    yield Row("open_1m", against, ours, peer, "s", f"<= {limit:.3g}")


def sizes(bench: Bench) -> Iterator[Row]:
    """Bytes a position on disk or in a process that trains, whichever is more."""
    positions, _ = bench.parsed
    peer = positions.n_bytes / len(positions)
    cache = bench.folder / "cache"
    for what, store, small, limit in (
        ("bytes_games", bench.million, "bundled", MAX_GAME_BYTES),
        ("bytes_chunks", bench.soft(2 if bench.quick else 8), bench.soft(1).path, MAX_CHUNK_BYTES),
    ):
        resident, own = (n / store.n_positions for n in _resident(store, small, cache))
        disk = store.path.stat().st_size / store.n_positions
        print(f"{what}: {disk:.1f} on disk, {resident:.1f} resident of which {own:.1f} not shared")
        goal = f"<= {limit / peer:.3g}"
        yield Row(what, "original's arrays", max(disk, resident), peer, "bytes/position", goal)


def importing(bench: Bench) -> Iterator[Row]:
    """Positions a second from SGF to the finished store, all cores."""
    leelaz = supervised.find_leelaz()
    if leelaz is None:
        return
    sgf = bench.folder / "games.sgf"
    text = gzip.decompress(BUNDLED_GAMES.read_bytes())
    sgf.write_bytes(text * (1 if bench.quick else 2))
    n_positions = sum(len(game.moves) for game in bench.games) * (1 if bench.quick else 2)

    def ours() -> float:
        cache = bench.folder / "import"
        began = time.perf_counter()
        ensure_store(sgf, cache)
        seconds = time.perf_counter() - began
        shutil.rmtree(cache)
        return n_positions / seconds

    def peer() -> float:
        folder = Path(tempfile.mkdtemp(dir=bench.folder))
        return n_positions / supervised.dump_seconds(leelaz, sgf, folder)

    rate, peer_rate = best_of(min(bench.rounds, 2), ours, peer)
    against = "leelaz dump_supervised"
    yield Row("import_sgf", against, rate, peer_rate, "positions/s", ">= 5")


def main() -> None:
    chosen = choose(__doc__, GROUPS)
    with tempfile.TemporaryDirectory(prefix="lzsweep-bench") as folder:
        os.environ["LZSWEEP_CACHE"] = f"{folder}/cache"
        bench = Bench(Path(folder).resolve(), quick=chosen.quick)
        publish("data", chosen, lambda group: GROUPS[group](bench))


def _training(bench: Bench) -> Iterator[Row]:
    from benchmarks import training  # Lightning is slow to import

    return training.rows(bench.folder, quick=bench.quick)


def _gpu(bench: Bench) -> Iterator[Row]:
    from benchmarks import gpu  # shares no figures with the rest

    return gpu.rows(bench.folder, quick=bench.quick)


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "batches": batches,
    "opening": opening,
    "sizes": sizes,
    "importing": importing,
    "training": _training,
    "gpu": _gpu,
}


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _repeat(games: Sequence[Game], n_positions: int) -> Iterator[Game]:
    for number in itertools.count():
        for game in games:
            key = hashlib.blake2b(game.key + number.to_bytes(4, "little"), digest_size=16)
            yield dataclasses.replace(game, key=key.digest())
            n_positions -= len(game.moves)
            if n_positions <= 0:
                return


def _soften(records: Records, seed: int) -> Records:
    policy = np.random.default_rng(seed).random(records.policy.shape, np.float32) + 0.01
    policy /= policy.sum(axis=1, keepdims=True)
    return Records(records.planes, records.side, policy, records.won)


def _resident(store: Store, small: Path | str, cache: Path) -> tuple[int, int]:
    """Bytes by which a process grows that trains a whole epoch: all, and those not shared.

    This process has mapped the file and read it, as another trial would have.
    """
    arrays = [getattr(store, name) for name in POLICY_SECTIONS | SECTIONS]
    for array in arrays:
        if array is not None:
            array.view(np.uint8).max()
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_train_epoch, args=(store.path, small, cache, writer))
    child.start()
    writer.close()  # so that a child that dies is an end, not a wait
    total, own = reader.recv()
    child.join()
    return total, own


def _train_epoch(path: Path, small: Path | str, cache: Path, writer: Connection) -> None:
    torch.set_num_threads(1)
    _gather_epoch(small, cache)  # so that code and buffers are there already
    before = _memory()
    data = _gather_epoch(path, cache)
    after = _memory()
    writer.send(tuple(a - b for a, b in zip(after, before, strict=True)))
    del data


def _gather_epoch(path: Path | str, cache: Path) -> object:
    data = GoData(path, cache, batch_size=BATCH)
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return data, [sum(len(batch.flags) for batch in loader) for loader in loaders]


def _memory() -> tuple[int, int]:
    """Resident bytes of this process: all, and those that no other process shares."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = line.split()
        fields[name.rstrip(":")] = int(size) * 1024
    return fields["Rss"], fields["Private_Clean"] + fields["Private_Dirty"]


if __name__ == "__main__":
    main()

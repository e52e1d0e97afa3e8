"""Sweeps beside their peers: `make bench-sweep`, or `python -m benchmarks.sweep`.

It prints what goes on and a table, and writes `build/bench/sweep.json`; `--keep` also puts the
table into `benchmarks/README.md`. Rows of other ids stay in both. `--quick` only shows that
everything runs, and writes `sweep-quick.json`. The peers live in an environment of their own,
which `make bench-sweep` makes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from benchmarks import claims, loggers, overhead, search
from benchmarks.server import mlflow_server
from benchmarks.sweepers import PEERS_BIN, Sweepers
from benchmarks.table import Row, as_markdown, keep, write_json
from lzsweep.train.build import ensure_store

OUTPUT = Path("build/bench/sweep.json")
CURVES = Path("build/bench/search.json")


class Bench(ExitStack):
    """What the measurements share: a folder, and a server that is started when first asked for."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        super().__init__()
        self.folder = folder
        self.quick = quick

    @cached_property
    def sweepers(self) -> Sweepers:
        ensure_store("bundled", self.folder / "cache")  # nobody's trial makes it
        print("  starting an MLflow server", flush=True)
        return Sweepers(
            self.folder / "sweeps", self.enter_context(mlflow_server(self.folder / "mlflow"))
        )


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "steady": lambda bench: overhead.steady(bench.sweepers, quick=bench.quick),
    "uneven": lambda bench: overhead.uneven(bench.sweepers, quick=bench.quick),
    "ask": lambda bench: claims.rows(bench.folder, quick=bench.quick),
    "logging": lambda bench: loggers.logging(bench.sweepers, quick=bench.quick),
    "search": lambda bench: search.search(bench.sweepers, CURVES, quick=bench.quick),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="only show that everything runs")
    parser.add_argument("--keep", action="store_true", help="put the table into the README")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    chosen = parser.parse_args()
    if not PEERS_BIN.exists() and {"steady", "uneven", "search"} & set(chosen.only):
        parser.error("the peers' environment must exist; `make bench-sweep` makes it")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    output = OUTPUT.with_stem("sweep-quick") if chosen.quick else OUTPUT
    began = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="lzsweep-bench") as folder:
        os.environ["LZSWEEP_CACHE"] = f"{folder}/cache"
        with Bench(Path(folder).resolve(), quick=chosen.quick) as bench:
            for name in chosen.only:
                print(f"{name} ({time.monotonic() - began:.0f} s)", flush=True)
                for row in GROUPS[name](bench):
                    rows.append(row)
                    print(as_markdown([row]).splitlines()[-1], flush=True)
                    write_json(rows, output)  # what is there stays if a later one fails
                    if chosen.keep:
                        keep("sweep", rows, os.cpu_count() or 1)
    print(as_markdown(rows))


if __name__ == "__main__":
    main()

"""Sweeps beside their peers: `make bench-sweep`, or `python -m benchmarks.sweep`.

It prints what goes on and a table, and writes `build/bench/sweep.json`; `--keep` also puts the
table into `benchmarks/README.md`. Rows of other ids stay in both. `--quick` only shows that
everything runs, and writes `sweep-quick.json`. The peers live in an environment of their own,
which `make bench-sweep` makes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from benchmarks import claims, loggers, overhead, search
from benchmarks.server import mlflow_server
from benchmarks.sweepers import PEERS_BIN, Sweepers
from benchmarks.table import Row, choose, publish
from lzsweep.train.build import ensure_store

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
    chosen = choose(__doc__, GROUPS, missing=_missing)
    with tempfile.TemporaryDirectory(prefix="lzsweep-bench") as folder:
        os.environ["LZSWEEP_CACHE"] = f"{folder}/cache"
        with Bench(Path(folder).resolve(), quick=chosen.quick) as bench:
            publish("sweep", chosen, lambda group: GROUPS[group](bench))


def _missing(only: Sequence[str]) -> str:
    if PEERS_BIN.exists() or not {"steady", "uneven", "search"} & set(only):
        return ""
    return "the peers' environment must exist; `make bench-sweep` makes it"


if __name__ == "__main__":
    main()

"""Rows of figures: ours against a peer's, their ratio and whether it is what was aimed at.

The commands that measure share their options and how rows come out: see `choose` and `publish`.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

README = Path(__file__).with_name("README.md")
OUTPUT = Path("build/bench")
_COMPARE = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is ours / peer, `goal` a comparison of it, such as `>= 60`."""

    what: str
    against: str
    ours: float
    peer: float
    unit: str
    goal: str

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def holds(self) -> bool:
        sign, limit = self.goal.split()
        return bool(_COMPARE[sign](self.ratio, float(limit)))

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"ratio": self.ratio, "holds": self.holds}


def choose(
    doc: str | None,
    groups: Iterable[str],
    *,
    has_quick: bool = True,
    missing: Callable[[Sequence[str]], str] = lambda only: "",
) -> argparse.Namespace:
    """Read the command line of a measurement: `quick`, `keep` and the groups in `only`.

    Args:
        doc: the command's docstring.
        groups: names of the groups of rows.
        has_quick: whether it can be shortened.
        missing: why the chosen groups cannot be measured here; empty if they can.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.set_defaults(quick=False)
    if has_quick:
        parser.add_argument("--quick", action="store_true", help="only show that everything runs")
    parser.add_argument("--keep", action="store_true", help="put the table into the README")
    parser.add_argument("--only", nargs="+", choices=list(groups), default=list(groups))
    chosen = parser.parse_args()
    if why := missing(chosen.only):
        parser.error(why)
    return chosen


def publish(
    name: str, chosen: argparse.Namespace, measure: Callable[[str], Iterator[Row]]
) -> None:
    """Measure the chosen groups: each row is printed and written at once, the table at the end.

    Args:
        name: of the JSON file below `build/bench` and of the table in the README.
        chosen: of `choose`.
        measure: the rows of a group.
    """
    path = OUTPUT / f"{name}{'-quick' if chosen.quick else ''}.json"
    began = time.monotonic()
    rows: list[Row] = []
    for group in chosen.only:
        spent_s, load = time.monotonic() - began, os.getloadavg()[0]
        print(f"{group} (after {spent_s:.0f} s; the machine's load is {load:.1f})", flush=True)
        for row in measure(group):
            rows.append(row)
            print(as_markdown([row]).splitlines()[-1], flush=True)
            write_json(rows, path)  # what is there stays if a later one fails
            if chosen.keep:
                keep(name, rows, os.cpu_count() or 1)
    print(as_markdown(rows))


def best_of(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """The highest figure of each, measured in turn so that a busy machine is fair to all."""
    found = [[measure() for measure in measures] for _ in range(rounds)]
    return [max(column) for column in zip(*found, strict=True)]


def per_second(work: Callable[[], int], seconds: float) -> float:
    """How much work a second is done, as told by `work` each time it is called."""
    work()
    began = time.perf_counter()
    done = 0
    while (spent := time.perf_counter() - began) < seconds:
        done += work()
    return done / spent


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Put the rows into a JSON file; rows of other ids that it holds stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    former = json.loads(path.read_text()) if path.exists() else []
    by_id = {row["what"]: row for row in (*former, *(row.as_dict() for row in rows))}
    path.write_text(json.dumps([*by_id.values()], indent=1) + "\n")


def as_markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| what | against | ours | peer | unit | ratio | goal | holds |",
        "|---|---|---:|---:|---|---:|---|---|",
    ]
    for row in rows:
        figures = " | ".join(f"{value:,.4g}" for value in (row.ours, row.peer))
        holds = "yes" if row.holds else "**no**"
        lines.append(
            f"| `{row.what}` | {row.against} | {figures} | {row.unit} | {row.ratio:,.3g} |"
            f" {row.goal} | {holds} |"
        )
    return "\n".join(lines)


def keep(name: str, rows: Sequence[Row], n_cores: int) -> None:
    """Put these rows into the README's table of this name; rows of other ids in it stay."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = README.read_text()
    head, _, rest = text.partition(begin)
    former, _, tail = rest.partition(end)
    *header, _ = as_markdown(rows[:1]).splitlines()
    lines = {what: line for line, what in re.findall(r"^(\| `(\w+)` .*)$", former, re.MULTILINE)}
    lines |= {row.what: as_markdown([row]).splitlines()[-1] for row in rows}
    table = "\n".join([*header, *lines.values()])
    where = f"{date.today().isoformat()}, {n_cores} cores, {_cpu_model()}, Python"
    where += f" {platform.python_version()}."
    README.write_text(f"{head}{begin}\n{where}\n\n{table}\n{end}{tail}")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import data, table
from benchmarks.peers import chunkparser
from benchmarks.table import Row
from lzsweep.go.chunks import encode_game, format_binary
from lzsweep.go.sgf import Game, read_games
from lzsweep.train.build import BUNDLED_GAMES


def test_a_row_compares_its_ratio_with_its_goal() -> None:
    row = Row("open_1m", "parsing", ours=0.05, peer=200.0, unit="s", goal="<= 0.001")

    assert row.as_dict()["ratio"] == 0.05 / 200
    assert row.holds
    assert not Row("x", "y", ours=1.8, peer=1.0, unit="", goal=">= 1.9").holds


def test_the_latest_table_takes_the_place_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("head\n<!-- data -->\nformer\n<!-- end of data -->\ntail\n")
    monkeypatch.setattr(table, "README", readme)

    table.keep("data", [Row("what", "whom", 3, 2, "a", ">= 1")], 2)

    text = readme.read_text()
    assert "| `what` | whom | 3 | 2 | a | 1.5 | >= 1 | yes |" in text
    assert "former" not in text
    assert text.startswith("head\n")
    assert text.endswith("-->\ntail\n")


def test_the_chunk_parser_gives_whole_batches() -> None:
    game = next(g for g in read_games(BUNDLED_GAMES, workers=1) if isinstance(g, Game))
    records = format_binary(encode_game(game))

    planes, policies, winners = next(chunkparser.read_batches([records], 64))

    assert (len(planes), len(policies), len(winners)) == (64 * 18 * 361, 64 * 362 * 4, 64 * 4)


@pytest.mark.slow
def test_measuring_runs_and_writes_its_rows(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["data", "--quick", "--only", "batches", "opening", "sizes"])
    monkeypatch.setenv("LZSWEEP_CACHE", str(work / "cache"))

    data.main()

    rows = json.loads((work / "build/bench/data.json").read_text())
    assert [row["what"] for row in rows] == [
        "batches_vs_original",
        "batches_vs_chunkparser",
        "open_1m",
        "bytes_games",
        "bytes_chunks",
    ]
    keys = {"what", "against", "ours", "peer", "unit", "ratio", "goal", "holds"}
    assert all(set(row) == keys and row["ours"] > 0 for row in rows)

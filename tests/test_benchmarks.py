from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import claims, crowd, data, loggers, scale, search, table
from benchmarks.clock import (
    Span,
    list_schedule_s,
    overhead_s,
    places_s,
    read_spans,
    wall_of_trials_s,
    wall_s,
    write_span,
)
from benchmarks.peers import chunkparser
from benchmarks.sweepers import Outcome
from benchmarks.table import Row
from lzsweep.go.chunks import encode_game, format_binary
from lzsweep.go.sgf import Game, read_games
from lzsweep.train.build import BUNDLED_GAMES
from lzsweep.train.decode import symmetry_table
from tests.go.engine import game_records
from tests.sweep.conftest import postgres_folder  # noqa: F401


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


def test_rows_of_other_ids_stay_in_the_table_and_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme, output = tmp_path / "README.md", tmp_path / "bench" / "rows.json"
    readme.write_text("<!-- sweep -->\n<!-- end of sweep -->\n")
    monkeypatch.setattr(table, "README", readme)
    first = [Row("ask", "whom", 1, 2, "a", "<= 1"), Row("uneven", "whom", 3, 2, "s", "<= 1")]
    later = [Row("ask", "whom", 4, 2, "a", "<= 1"), Row("search", "whom", 1, 4, "s", "<= 1")]

    for rows in (first, later):
        table.keep("sweep", rows, 2)
        table.write_json(rows, output)

    ratios = {row["what"]: row["ratio"] for row in json.loads(output.read_text())}
    assert ratios == {"ask": 2.0, "uneven": 1.5, "search": 0.25}
    kept = [
        line.split("|")[6].strip() for line in readme.read_text().splitlines() if "whom" in line
    ]
    assert kept == ["2", "1.5", "0.25"]


def test_the_originals_parser_reads_our_binary_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.randrange", lambda n: 0)  # turned by no symmetry
    game = next(g for g in read_games(BUNDLED_GAMES, workers=1) if isinstance(g, Game))
    expected = game_records(game)
    n = len(expected)

    (batch,) = chunkparser.read_batches([format_binary(encode_game(game))], n)

    planes = np.frombuffer(batch[0], np.uint8).reshape(n, 18, 361)
    policies = np.frombuffer(batch[1], np.float32).reshape(n, 362)
    winners = np.frombuffer(batch[2], np.float32)
    for row, (stones, side, move, result) in enumerate(expected):
        points = [[s >> point & 1 for point in range(361)] for s in stones]
        np.testing.assert_array_equal(planes[row, :16], points)
        assert (planes[row, 16:] == [[1 - side], [side]]).all(), "black to move, white to move"
        assert (policies[row].argmax(), policies[row].max(), policies[row].sum()) == (move, 1, 1)
        assert winners[row] == result


def test_the_originals_parser_turns_our_binary_chunks_as_we_do() -> None:
    game = next(g for g in read_games(BUNDLED_GAMES, workers=1) if isinstance(g, Game))
    records = encode_game(game)
    planes = np.unpackbits(records.planes, axis=2, count=361, bitorder="little")
    known = {
        turned.tobytes() for s in symmetry_table().numpy() for turned in planes[:, :, s[:361]]
    }

    (batch,) = chunkparser.read_batches([format_binary(records)], len(records))

    turned = np.frombuffer(batch[0], np.uint8).reshape(-1, 18, 361)[:, :16]
    assert {position.tobytes() for position in turned} <= known


def test_the_noise_of_a_comparison_is_that_of_its_median() -> None:
    seconds = [(1.02, 1.0), (2.0, 2.0), (1.01, 1.0), (9.0, 1.0)]  # one was disturbed
    spans = [
        Span(0.0, 1.0, steps_s=s, logger=logger)
        for pair in seconds
        for s, logger in zip(pair, ("JournalLogger", ""), strict=True)
    ]

    ratio, noise = loggers.compare(spans)

    assert ratio == pytest.approx(1.015)
    assert noise == pytest.approx(1.2533 * 1.4826 * 0.01 / 2)
    assert loggers.compare(spans[:6])[1] < noise * 1.2


def test_a_client_that_dies_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def connect(uri: str) -> None:
        if os.getpid() != parent:
            raise ConnectionError("no server")

    monkeypatch.setattr(crowd, "connect", connect)
    with pytest.raises(SystemExit, match="a client ended before it had told what it logged"):
        crowd.log_at_once("http://nowhere", "0", n_clients=3, seconds=1.0)


@pytest.mark.parametrize(
    ("n_slots", "seconds"), [(1, 15.0), (2, 9.0), (3, 7.0), (4, 6.0), (9, 5.0)]
)
def test_a_list_schedule_gives_each_job_the_slot_that_is_free_first(
    n_slots: int, seconds: float
) -> None:
    assert list_schedule_s([1.0, 2.0, 3.0, 4.0, 5.0], n_slots) == seconds


def test_overhead_is_the_time_of_the_slots_that_no_training_filled() -> None:
    spans = [Span(10.0, 12.0), Span(10.5, 13.0), Span(13.0, 14.0)]

    assert wall_s(spans) == 4.0
    assert overhead_s(spans, 2, wall_s(spans)) == pytest.approx((2 * 4.0 - 5.5) / 3)
    assert overhead_s(spans, 2, 20.0) == pytest.approx((2 * 20.0 - 5.5) / 3)
    assert wall_of_trials_s(spans) == 4.0
    assert wall_of_trials_s([Span(10.0, 12.0, called=7.0), *spans[1:]]) == 14.0 - 7.0


def test_the_time_of_a_place_begins_with_its_first_training() -> None:
    spans = [Span(10, 12, place="n1:0"), Span(13, 14, place="n2:1"), Span(13, 20, place="n1:0")]

    assert places_s(spans) == (20 - 10) + (20 - 13)


def test_trainings_are_read_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    later, first = Span(2.0, 3.0, best=1.5, logger="JournalLogger"), Span(1.0, 9.0)
    write_span(later, tmp_path / "spans")
    write_span(first, tmp_path / "spans")
    (tmp_path / "spans" / "4-4.partial").write_text("{")

    assert read_spans(tmp_path / "spans") == [first, later]


def test_a_search_is_judged_by_when_it_was_first_as_good() -> None:
    spans = [Span(101.0, 109.0, best=2.0), Span(101.0, 104.0, best=3.0), Span(105.0, 111.0, 2.5)]

    curve = search.curve_of(Outcome(spans, began=100.0, wall_s=12.0))

    assert curve == [(4.0, 3.0), (9.0, 2.0), (11.0, 2.0)]
    assert search.reached_s(curve, 2.5, 12.0) == 9.0
    assert search.reached_s(curve, 1.0, 12.0) == 12.0, "never: all of its time"


def test_a_claim_is_measured_beside_plain_optuna(tmp_path: Path) -> None:
    ours, plain = claims.measure(f"sqlite:///{tmp_path}/study.db", n_finished=5, rounds=1)

    assert ours > 0
    assert plain > 0


@pytest.mark.slow
def test_many_workers_share_out_the_trials_exactly(
    postgres_folder: Path,  # noqa: F811
) -> None:
    found = {row.what: row for row in scale.rows(postgres_folder, quick=True)}

    assert found["scale_errors"].ours == 0
    assert found["scale_errors"].peer == 24, "trials told"
    assert found["scale_rate"].ours > 0


@pytest.mark.slow
def test_measuring_runs_and_writes_its_rows(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["data", "--quick", "--only", "batches", "opening", "sizes"])
    monkeypatch.setenv("LZSWEEP_CACHE", str(work / "cache"))

    data.main()

    rows = json.loads((work / "build/bench/data-quick.json").read_text())
    assert [row["what"] for row in rows] == [
        "batches_vs_original",
        "batches_vs_chunkparser",
        "open_1m",
        "bytes_games",
        "bytes_chunks",
    ]
    keys = {"what", "against", "ours", "peer", "unit", "ratio", "goal", "holds"}
    assert all(set(row) == keys and row["ours"] > 0 for row in rows)

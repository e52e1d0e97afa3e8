"""The winner's way out: registered, exported, played with, and loaded elsewhere."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from lzsweep.errors import DataError
from lzsweep.go.weights import read_weights
from lzsweep.train.player import Player, planes_after
from tests.go.engine import parse_heatmap, start_leelaz
from tests.go.network import evaluate, random_weights
from tests.server.conftest import STUDY
from tests.sweep.conftest import Cli

MOVES = ["Q16", "D4", "C3", "pass", "D3", "C4", "B3", "E3", "Q3"]

pytestmark = [pytest.mark.slow, pytest.mark.server]


@pytest.mark.engine
def test_the_champion_plays_and_answers_as_the_engine_does(
    here: Cli, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = here("promote", STUDY, "--name", "late")
    assert code == 0, err
    assert "models:/late@champion now, version 1" in out
    code, out, _ = here("promote", STUDY, "--name", "late")
    assert "is models:/late@champion already, version 1" in out
    code, out, err = here("export", "models:/late@champion", "-o", str(tmp_path / "net.txt.gz"))
    assert code == 0, err

    uri = f"sqlite:///{swept / 'mlflow.db'}"
    version = MlflowClient(uri, uri).get_model_version_by_alias("late", "champion")
    assert version.tags["lzsweep.study"] == STUDY
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/late@champion")
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 18, 19, 19)
    answer = model.predict(planes_after(MOVES)[None])
    assert answer["policy"].shape == (1, 362)
    assert answer["policy"].sum() == pytest.approx(1, abs=1e-5)

    with start_leelaz(tmp_path, "net.txt.gz") as engine:
        for number, move in enumerate(MOVES):
            engine.ask(f"play {'bw'[number % 2]} {move}")
        engine.ask("heatmap 0")
        cells, winrate = parse_heatmap(engine.notes)
    ours = 1000 * answer["policy"][0].astype(np.float64)
    stones = planes_after(MOVES)[[0, 8]].any(0).flatten()
    ours[:361][stones] = 0
    near_step = np.abs(ours - np.round(ours)) < 0.01
    np.testing.assert_array_equal(np.where(near_step, 0, cells - np.floor(ours)), 0)
    assert winrate == pytest.approx((1 + answer["value"][0]) / 2, abs=1e-5)


def test_a_worse_trial_is_crowned_with_a_note(here: Cli, swept: Path) -> None:
    status = here.status(STUDY)
    best = status["best"]["number"]
    (worse,) = (t for t in status["trials"] if t["state"] == "complete" and t["number"] != best)
    number = worse["number"]
    code, out, err = here("promote", STUDY, "--name", "worse", "--trial", str(number))
    assert code == 0, err
    assert out.startswith(f"note: trial {number} is not the best; the best is #{best}\n")
    uri = f"sqlite:///{swept / 'mlflow.db'}"
    tags = MlflowClient(uri, uri).get_model_version_by_alias("worse", "champion").tags
    assert tags["lzsweep.state"] == "complete"
    assert float(tags["val/loss_unweighted"]) == pytest.approx(worse["values"][0], rel=1e-4)


def test_what_cannot_be_promoted_is_told(here: Cli) -> None:
    code, _, err = here("promote", STUDY, "--trial", "99")
    assert code == 2
    assert "has no trial" in err
    code, _, err = here("export", "models:/nobody@champion", "-o", "x.txt")
    assert code == 2
    assert "has no models:/nobody@champion; see `lzsweep promote`" in err
    code, _, err = here("export", "models:/nobody", "-o", "x.txt")
    assert code == 2
    assert "must be given as models:/NAME@champion" in err


def test_a_player_answers_any_number_of_boards() -> None:
    weights = random_weights(1, 4)
    boards = np.stack([planes_after(MOVES[:n]) for n in range(len(MOVES))])
    answer = Player(weights).predict(boards)
    policy, value = evaluate(weights, boards.reshape(len(boards), 18, 361))
    np.testing.assert_allclose(answer["policy"], policy, atol=2e-6)
    np.testing.assert_allclose(answer["value"], value, atol=2e-6)
    assert Player(weights).predict(boards[:0])["policy"].shape == (0, 362)
    with pytest.raises(DataError, match=r"must have the shape .*planes_after"):
        Player(weights).predict(boards[0])


def test_planes_have_the_side_to_move_first() -> None:
    planes = planes_after(["A1", "T19"])
    assert planes[0, 0, 0] == 1, "black's stone, black to move"
    assert planes[8, 18, 18] == 1
    assert planes[1].sum() == 1, "a move ago"
    assert planes[9].sum() == 0
    assert planes[16].all()
    assert not planes[17].any()
    with pytest.raises(DataError, match="the point is occupied"):
        planes_after(["A1", "A1"])


def test_the_exported_file_is_the_trials(here: Cli, tmp_path: Path) -> None:
    here("promote", STUDY, "--name", "late")
    code, _, _ = here("export", "models:/late/1", "-o", str(tmp_path / "a.txt"))
    assert code == 0
    folder = here.status(STUDY)["best"]["folder"]
    code, _, _ = here("export", folder, "-o", str(tmp_path / "b.txt"))
    assert code == 0
    first, second = read_weights(tmp_path / "a.txt"), read_weights(tmp_path / "b.txt")
    for ours, theirs in zip(first.tensors(), second.tensors(), strict=True):
        np.testing.assert_array_equal(ours, theirs)

"""Our networks as the engine's weights: exact both ways, and judged by the engine itself."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lzsweep.errors import ConfigError, DataError
from lzsweep.go.board import N_POINTS, PASS
from lzsweep.go.gtp import Engine
from lzsweep.go.match import play_game
from lzsweep.go.sgf import Game, read_games
from lzsweep.go.weights import Weights, read_weights, write_weights
from lzsweep.train.build import build_store
from lzsweep.train.data import Pick, Rows, gather
from lzsweep.train.decode import N_SYMMETRIES, Decoder, symmetry_table
from lzsweep.train.export import (
    OtherModuleError,
    publish,
    read_checkpoint,
    start_from,
    to_state,
    to_weights,
)
from lzsweep.train.fit import train
from lzsweep.train.network import Network
from tests.go.engine import PROJECT, find_program, parse_heatmap, set_up, start_leelaz
from tests.go.network import evaluate, random_weights

MakeConfig = Callable[..., dict[str, Any]]
BUNDLED = PROJECT / "lzsweep" / "data" / "gnugo_selfplay.sgf.gz"
N_POSITIONS = 50


def build_network(weights: Weights) -> Network:
    network = Network(weights.blocks, weights.filters)
    network.load_state_dict(to_state(weights))
    return network.eval()


def one_batch() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(4, 18, 19, 19, generator=generator) < 0.3).float()


def checkpoint_of(network: Network, path: Path) -> Path:
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"network": network.shape(), "state_dict": state}, path)
    return path


def test_the_network_computes_what_the_weights_say() -> None:
    weights = random_weights(2, 6)
    planes = one_batch()

    with torch.no_grad():
        logits, value = build_network(weights)(planes)

    policy, expected = evaluate(weights, planes.flatten(2).numpy())
    np.testing.assert_allclose(logits.softmax(1).numpy(), policy, atol=2e-6)
    np.testing.assert_allclose(value.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("blocks", [0, 12])
def test_state_to_weights_and_back(blocks: int, tmp_path: Path) -> None:
    state = build_network(random_weights(blocks, 4)).state_dict()

    write_weights(tmp_path / "net.txt", to_weights(state))
    again = to_state(read_weights(tmp_path / "net.txt"))

    assert again.keys() == state.keys()
    for name, tensor in state.items():
        if name.endswith("beta"):
            # Folded into the bias and out again: the last bit may differ.
            torch.testing.assert_close(again[name], tensor, rtol=2e-7, atol=0)
        else:
            assert torch.equal(again[name], tensor), name


def test_half_precision_parameters_are_exported(tmp_path: Path) -> None:
    network = Network(1, 4).to(torch.bfloat16)

    weights = read_checkpoint(checkpoint_of(network, tmp_path / "x.ckpt"))

    assert weights.input.weight.dtype == np.float32
    np.testing.assert_array_equal(
        weights.input.weight, network.stem.conv.weight.detach().float().numpy()
    )


def test_networks_that_the_engine_cannot_take(tmp_path: Path) -> None:
    path = checkpoint_of(Network(1, 4, in_channels=5, board_size=9), tmp_path / "small.ckpt")
    with pytest.raises(DataError, match=r"small.ckpt has 9x9 points and 5 planes"):
        read_checkpoint(path)

    network = Network(1, 4)
    with torch.no_grad():
        network.get_parameter("tower.0.second.norm.beta")[2] = torch.nan
    path = checkpoint_of(network, tmp_path / "nan.ckpt")
    with pytest.raises(DataError, match=r"nan.ckpt: block 0 convolution 1 bias must be finite"):
        read_checkpoint(path)


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"layer.weight": torch.ones(2)}, "epoch": 3}, other)
    with pytest.raises(OtherModuleError, match=r"but is one of another module"):
        read_checkpoint(other)
    larger = Network(1, 4)
    larger.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(OtherModuleError, match=r"larger.ckpt: .* nothing like extra"):
        read_checkpoint(checkpoint_of(larger, tmp_path / "larger.ckpt"))
    whole = other.read_bytes()
    for content in (b"", b"hello\n", b"PK\x03\x04 and no more", whole[: len(whole) // 2]):
        broken = tmp_path / "broken.ckpt"
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"broken.ckpt must be .* it does not end as one"):
            read_checkpoint(broken)
    with zipfile.ZipFile(tmp_path / "games.zip", "w") as archive:
        archive.writestr("a.sgf", "(;)")
    with pytest.raises(DataError, match=r"games.zip must be a checkpoint, but is damaged or none"):
        read_checkpoint(tmp_path / "games.zip")


@pytest.mark.parametrize("kind", ["weights", "checkpoint", "run"])
def test_a_network_starts_from_another(kind: str, tmp_path: Path) -> None:
    first = build_network(random_weights(2, 5))
    source = tmp_path / "net.txt.gz"
    if kind == "weights":
        write_weights(source, to_weights(first.state_dict()))
    else:
        source = tmp_path / "checkpoints" / "best.ckpt"
        source.parent.mkdir()
        checkpoint_of(first, source)

    second = Network(2, 5)
    start_from(second, tmp_path if kind == "run" else source)

    with torch.no_grad():
        for ours, theirs in zip(second.eval()(one_batch()), first(one_batch()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if kind == "weights" else 0)


@pytest.mark.parametrize("name", ["net.txt", "net.ckpt"])
def test_another_size_is_told_with_the_command_that_fits(name: str, tmp_path: Path) -> None:
    weights = random_weights(2, 5)
    path = tmp_path / name
    if name.endswith(".ckpt"):
        checkpoint_of(build_network(weights), path)
    else:
        write_weights(path, weights)

    with pytest.raises(
        ConfigError,
        match=r"holds 2 blocks x 5 filters and the network has 3 x 4;"
        r" set network.blocks=2 network.filters=5",
    ):
        start_from(Network(3, 4), path)


def test_what_cannot_be_started_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must exist at .*nowhere"):
        start_from(Network(1, 4), tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"must hold checkpoints/best.ckpt or .*last.ckpt"):
        start_from(Network(1, 4), tmp_path)
    write_weights(tmp_path / "v2.txt", random_weights(1, 4, version=2))
    with pytest.raises(DataError, match=r"v2.txt: weights must be of version 1"):
        start_from(Network(1, 4), tmp_path / "v2.txt")


def test_training_begins_from_init_from_and_only_then(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """With a learning rate of nearly 0, what a training writes is what it began with."""
    source = tmp_path / "net.txt"
    write_weights(source, random_weights(1, 4))
    options = {
        "module__network__init_from": str(source),
        "module__lr": 1e-12,
        "trainer__limit_train_batches": 2,
    }
    folder = tmp_path / "run"

    train(make_config(**options, trainer__max_epochs=1), folder=folder)

    start, trained = to_state(read_weights(source)), state_of(folder)
    for name, tensor in start.items():
        if not name.endswith(("mean", "var")):
            torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-6)
    # It resumes from its own checkpoint, for which what it began with need not be there.
    source.unlink()
    train(make_config(**options, trainer__max_epochs=2), folder=folder)
    assert not torch.equal(state_of(folder)["stem.norm.mean"], trained["stem.norm.mean"])


def state_of(folder: Path) -> dict[str, Tensor]:
    return to_state(read_checkpoint(folder / "checkpoints" / "last.ckpt"))


def test_the_best_network_of_a_training_becomes_weights(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(make_config(), folder=tmp_path)
    publish(tmp_path)

    write_weights(tmp_path / "same.txt.gz", read_checkpoint(tmp_path / "checkpoints/best.ckpt"))
    assert (tmp_path / "weights.txt.gz").read_bytes() == (tmp_path / "same.txt.gz").read_bytes()

    # A file that cannot be written costs the file, not the training.
    blocked = tmp_path / "blocked"
    shutil.copytree(tmp_path / "checkpoints", blocked / "checkpoints")
    (blocked / "weights.txt.gz").mkdir()
    with caplog.at_level(logging.WARNING):
        publish(blocked)
    assert "weights must go to a writable file" in caplog.text


def test_a_module_of_another_kind_leaves_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "checkpoints" / "last.ckpt")
    publish(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert not caplog.text


@pytest.fixture(scope="module")
def games() -> list[Game]:
    return [game for game in read_games(BUNDLED) if isinstance(game, Game)][::3][:N_POSITIONS]


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("kind", ["random", "trained"])
def test_the_engine_computes_what_our_network_does(
    kind: str, games: list[Game], make_config: MakeConfig, tmp_path: Path
) -> None:
    """50 positions in 8 symmetries, through our store, decoder, symmetries and forward pass."""
    network = Network(2, 8).eval()
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    if kind == "random":
        network.load_state_dict(to_state(random_weights(2, 8, seed=2)))
        checkpoint.parent.mkdir()
        checkpoint_of(network, checkpoint)
    else:
        train(trained_config(make_config, trainer__max_steps=300), folder=tmp_path)
        start_from(network, checkpoint)
    weights = read_checkpoint(checkpoint)
    layers = [weights.input, *weights.tower, weights.policy, weights.value]
    assert max(np.abs(layer.mean).max() for layer in layers) > 0.5
    assert max(np.abs(np.log10(layer.variance)).max() for layer in layers) > 0.5
    write_weights(tmp_path / "net.txt.gz", weights)
    store = build_store(tmp_path / "x.store", games, source="test")
    rows = Rows.of(store)
    winrates = []
    with start_leelaz(tmp_path, "net.txt.gz") as engine:
        for number, game in enumerate(games):
            at = (17 * number + 3) % len(game.moves)
            position = int(store.game_start[number]) + at
            assert store.move[position] == game.moves[at]
            set_up(engine, game, at)
            winrates.append(compare(engine, network, rows, position))
    assert len(winrates) == N_POSITIONS
    # The comparison would mean nothing if the network gave the same for every position.
    assert np.std(winrates) > 0.01


def compare(engine: Engine, network: Network, rows: Rows, position: int) -> float:
    """Hold all symmetries of a position against the engine; the win rate as it lies."""
    turns = torch.arange(N_SYMMETRIES, dtype=torch.uint8)
    positions = torch.full((N_SYMMETRIES,), position, dtype=torch.int32)
    planes = Decoder()(gather(rows, Pick(positions, turns))).planes.float()
    with torch.no_grad():
        logits, values = network(planes)
    policies = 1000 * logits.double().softmax(1).numpy()
    taken = planes[0, [0, 8]].any(0).flatten().numpy()
    for turn, points in enumerate(symmetry_table().numpy()):
        engine.ask(f"heatmap {turn}")
        cells, winrate = parse_heatmap(engine.notes)
        ours = np.empty(N_POINTS + 1)
        ours[points] = policies[turn]
        ours[:N_POINTS][taken] = 0
        assert points[PASS] == PASS
        # The engine cuts the decimals off, after float32 sums in an order of its own.
        near_step = np.abs(ours - np.round(ours)) < 0.01
        np.testing.assert_array_equal(np.where(near_step, 0, cells - np.floor(ours)), 0)
        assert winrate == pytest.approx((1 + float(values[turn])) / 2, abs=1e-5)
    return (1 + float(values[0])) / 2


def trained_config(make_config: MakeConfig, **changes: Any) -> dict[str, Any]:
    return make_config(
        data__batch_size=128,
        module__network__blocks=2,
        module__network__filters=8,
        module__lr=0.02,
        trainer__max_epochs=-1,
        trainer__limit_train_batches=50,
        trainer__limit_val_batches=5,
        **changes,
    )


@pytest.mark.slow
@pytest.mark.engine
def test_a_trained_network_plays_a_whole_game_against_gnu_go(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Trained for a minute, exported, loaded by leelaz, judged move by move by our rules."""
    gnugo = [find_program("gnugo"), "--mode", "gtp", "--quiet", "--level", "0"]
    train(trained_config(make_config, trainer__max_time={"minutes": 1}), folder=tmp_path)
    publish(tmp_path)

    with (
        start_leelaz(tmp_path, "weights.txt.gz", "-v", "1", "-r", "0") as ours,
        Engine([*gnugo, "--chinese-rules", "--never-resign", "--seed", "1"]) as theirs,
    ):
        played = play_game((ours, theirs), move_timeout_s=120)
        score = theirs.ask("final_score", timeout_s=300)

    assert played.end == "two passes"
    assert len(played.moves) > 100
    assert score[:2] in ("B+", "W+")

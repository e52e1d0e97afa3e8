"""Stores of chunks: policies stay policies, games share their frames, shuffled records do not."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lzsweep.errors import DataError
from lzsweep.go.chunks import Records, encode_game, format_binary, write_chunks
from lzsweep.go.sgf import Game, read_games
from lzsweep.train.build import BUNDLED_GAMES, ensure_store
from lzsweep.train.data import GoData, Rows, gather
from lzsweep.train.decode import Batch, Decoder, symmetry_table
from lzsweep.train.store import UNPLAYED, Store
from tests.train.test_decode import pick_all

N_GAMES = 6


@pytest.fixture(scope="module")
def games() -> list[Records]:
    found = [g for g in read_games(BUNDLED_GAMES, workers=1) if isinstance(g, Game)]
    return [encode_game(game) for game in found[:N_GAMES]]


def soften(records: Records, seed: int = 0, tried: int = 40) -> Records:
    """The same positions with policies as a search leaves them."""
    rng = np.random.default_rng(seed)
    policy = np.zeros_like(records.policy)
    for row in policy:
        moves = rng.choice(362, tried, replace=False)
        visits = rng.integers(1, 200, tried)
        row[moves] = visits / visits.sum()
    return Records(records.planes, records.side, policy, records.won)


def shuffle(records: Records, seed: int = 0) -> Records:
    order = np.random.default_rng(seed).permutation(len(records))
    return Records(
        records.planes[order], records.side[order], records.policy[order], records.won[order]
    )


def join(games: list[Records]) -> Records:
    parts = ("planes", "side", "policy", "won")
    return Records(*(np.concatenate([getattr(g, part) for g in games]) for part in parts))


def load(path: Path | list[Path], cache: Path) -> Store:
    store = Store.open(ensure_store(path, cache, kind="chunks"), verify=True)
    assert store.info["drops"] == {}
    return store


def decode(store: Store, symmetries: list[int] | None = None) -> Batch:
    turned = symmetries or [0] * store.n_positions
    return Decoder()(gather(Rows.of(store), pick_all(list(range(store.n_positions)), turned)))


def assert_planes_equal(batch: Batch, records: Records) -> None:
    bits: NDArray[np.uint8] = np.unpackbits(records.planes, axis=2, bitorder="little", count=361)
    planes = batch.planes.numpy()
    np.testing.assert_array_equal(planes[:, :16].reshape(bits.shape), bits)
    np.testing.assert_array_equal(planes[:, 16, 0, 0], records.side == 0)
    np.testing.assert_array_equal(planes[:, 17, 0, 0], records.side == 1)
    np.testing.assert_array_equal(batch.value.numpy(), records.won * 2.0 - 1)


@pytest.mark.parametrize("form", ["text", "binary"])
def test_chunks_of_games_make_the_store_of_their_games(
    games: list[Records], tmp_path: Path, form: str, store: Store
) -> None:
    write_chunks(tmp_path / "games", games, form=form, games_per_chunk=4)  # type: ignore[arg-type]

    found = load(tmp_path, tmp_path / "cache")

    n = int(store.game_start[N_GAMES])
    assert (found.n_games, found.n_positions) == (N_GAMES, n)
    assert found.policy_moves is None
    assert found.game_start.tolist() == store.game_start[: N_GAMES + 1].tolist()
    np.testing.assert_array_equal(found.move, store.move[:n])
    np.testing.assert_array_equal(found.frames, store.frames[: n + 1])
    batch = decode(found)
    assert batch.move.dtype == torch.int64
    assert_planes_equal(batch, join(games))


def test_policies_stay_distributions(games: list[Records], tmp_path: Path) -> None:
    soft = [soften(game, seed) for seed, game in enumerate(games)]
    write_chunks(tmp_path / "soft", soft, form="binary")

    found = load(tmp_path, tmp_path / "cache")

    assert (found.n_games, found.n_positions) == (N_GAMES, sum(map(len, games)))
    assert (found.move == UNPLAYED).all()
    batch = decode(found)
    assert_planes_equal(batch, join(soft))
    np.testing.assert_allclose(batch.move.numpy(), join(soft).policy, rtol=2e-3)
    np.testing.assert_allclose(batch.move.sum(1).numpy(), 1, rtol=1e-5)


@pytest.mark.parametrize("symmetry", range(8))
def test_a_policy_turns_with_the_board(
    games: list[Records], tmp_path: Path, symmetry: int
) -> None:
    soft = soften(games[0])
    write_chunks(tmp_path / "soft", [soft], form="binary")
    found = load(tmp_path, tmp_path / "cache")

    turned = decode(found, [symmetry] * found.n_positions)

    points = symmetry_table()[symmetry].numpy()
    np.testing.assert_allclose(turned.move.numpy(), soft.policy[:, points], rtol=2e-3)


def test_moves_and_policies_may_mix(games: list[Records], tmp_path: Path) -> None:
    mixed = [games[0], soften(games[1]), games[2]]
    paths = [write_chunks(tmp_path / f"m{i}", [game])[0] for i, game in enumerate(mixed)]

    found = load(paths, tmp_path / "cache")

    batch = decode(found)
    np.testing.assert_allclose(batch.move.numpy(), join(mixed).policy, rtol=2e-3)
    first = len(games[0])
    assert found.move[:first].tolist() == games[0].policy.argmax(1).tolist()


def test_shuffled_records_bring_their_own_history(games: list[Records], tmp_path: Path) -> None:
    records = shuffle(soften(join(games)))
    (tmp_path / "shuffled.gz").write_bytes(gzip.compress(format_binary(records)))

    found = load(tmp_path / "shuffled.gz", tmp_path / "cache")

    assert found.n_games > 0.95 * len(records)
    assert len(set(found.game_hash.tolist())) > 0.95 * found.n_games
    assert_planes_equal(decode(found), records)


def test_a_soft_position_of_a_game_costs_at_most_900_bytes(
    games: list[Records], tmp_path: Path
) -> None:
    # Every move tried: more than any search leaves.
    write_chunks(tmp_path / "soft", [soften(game, tried=362) for game in games], form="binary")

    found = load(tmp_path, tmp_path / "cache")

    assert found.path.stat().st_size / found.n_positions < 900


def test_damaged_records_are_counted_named_and_left_out(
    games: list[Records], tmp_path: Path
) -> None:
    data = bytearray(format_binary(games[0]))
    size = len(data) // len(games[0])
    data[5 * size + 4 : 5 * size + 8] = np.float32(np.nan).tobytes()
    path = tmp_path / "x.gz"
    path.write_bytes(data[:-7])

    found = Store.open(ensure_store(path, tmp_path / "cache", kind="chunks"), verify=True)

    assert found.n_positions == len(games[0]) - 2
    assert found.info["drops"] == {"damaged record": 2}
    assert "x.gz: record 6: the probabilities" in found.info["examples"]["damaged record"]


def test_nothing_but_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(b"no chunk")
    with pytest.raises(DataError, match=r"holds none \(dropped: damaged record: 1\)"):
        ensure_store(path, tmp_path / "cache", kind="chunks")


def test_limits_on_games_are_no_limits_on_chunks(tmp_path: Path) -> None:
    (tmp_path / "x.gz").touch()
    with pytest.raises(DataError, match=r"data\.strict and data\.filter must be left out"):
        ensure_store(tmp_path / "x.gz", tmp_path / "cache", kind="chunks", strict=True)
    with pytest.raises(DataError, match=r"data\.kind must be sgf or chunks, but got 'csv'"):
        ensure_store(tmp_path / "x.gz", tmp_path / "cache", kind="csv")


def test_the_loss_is_the_soft_cross_entropy(games: list[Records], tmp_path: Path) -> None:
    soft = soften(games[0])
    write_chunks(tmp_path / "soft", [soft], form="binary")
    batch = decode(load(tmp_path, tmp_path / "cache"))
    logits = torch.randn(len(soft), 362, generator=torch.Generator().manual_seed(1))

    loss = F.cross_entropy(logits, batch.move)

    expected = -(soft.policy * logits.log_softmax(1).numpy()).sum(1).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)


def test_batches_of_chunks_come_as_any_others(games: list[Records], tmp_path: Path) -> None:
    write_chunks(tmp_path / "soft", [soften(game) for game in games], games_per_chunk=1)
    options = {"kind": "chunks", "batch_size": 32, "val_fraction": 0.3, "test_fraction": 0.3}
    batches = []
    for resident in (False, True):
        data = GoData(tmp_path, tmp_path / "cache", device_resident=resident, **options)  # type: ignore[arg-type]
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        batches.append(data.on_after_batch_transfer(batch, 0))

    assert batches[0].move.shape == (32, 362)
    for mapped, held in zip(*batches, strict=True):
        assert torch.equal(mapped, held)


def test_training_on_chunks(
    games: list[Records], tmp_path: Path, make_config: Callable[..., dict[str, object]]
) -> None:
    from lzsweep.train.fit import train

    write_chunks(tmp_path / "soft", [soften(game) for game in games], games_per_chunk=1)
    changes = {"path": str(tmp_path / "soft.*.gz"), "kind": "chunks"}
    config = make_config(
        **{f"data__{key}": value for key, value in changes.items()},
        data__val_fraction=0.3,
        data__test_fraction=0.3,
    )

    metrics = train(config, folder=tmp_path / "run")

    assert 0 < metrics["val/policy_loss"] < 10

"""`lzsweep data`: what goes in comes out, and every mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lzsweep.go.chunks import Records, encode_game, read_chunks, write_chunks
from lzsweep.go.sgf import Game, read_games
from lzsweep.train.build import BUNDLED_GAMES
from lzsweep.train.store import MAGIC, VERSION
from tests.go.test_fetch import CONTENT, SHA256, FlakyServer, server  # noqa: F401
from tests.sweep.conftest import Cli, cli  # noqa: F401

SGF = "(;GM[1]{};B[pd];W[dp];B[pq];W[dd];B[])"
HEADS = ("RE[B+1]KM[6.5]", "RE[B+1]KM[7.5]", "RE[W+T]KM[0.5]HA[2]", "RE[B+1]SZ[9]", "RE[Void]")


@pytest.fixture
def games(work: Path) -> Path:
    path = work / "games.sgf"
    path.write_text("".join(map(SGF.format, HEADS)))
    return path


def told(cli: Cli, *arguments: str) -> Any:  # noqa: F811
    code, out, err = cli("data", *arguments, "--format", "json")
    assert code == 0, err
    return json.loads(out)


def refused(cli: Cli, *arguments: str) -> str:  # noqa: F811
    code, out, err = cli("data", *arguments)
    assert (code, out) == (2, ""), (out, err)
    assert err.startswith("lzsweep: ")
    assert len(err.splitlines()) == 1, err
    return err


def test_import_tells_what_came_and_what_did_not(cli: Cli, games: Path) -> None:  # noqa: F811
    found = told(cli, "import", str(games), "--filter", "komi=[6,8]", "--filter", "min_moves=3")

    assert (found["games"], found["positions"]) == (2, 10)
    assert found["dropped"] == {"komi out of range": 1, "board size": 1, "no result": 1}
    assert Path(found["store"]).stat().st_size == found["bytes"]
    assert sum(part["games"] for part in found["splits"].values()) == 2
    assert "SZ[9]" in found["examples"]["board size"]

    code, out, _ = cli("data", "import", str(games))
    assert code == 0
    assert "games      3" in out
    assert "         1 board size: " in out


def test_info_finds_what_was_imported(cli: Cli, games: Path) -> None:  # noqa: F811
    chosen = (str(games), "--filter", "handicap=[0,0]")
    assert "must be imported to be described" in refused(cli, "info", *chosen)
    imported = told(cli, "import", *chosen)

    assert told(cli, "info", *chosen) == imported
    assert told(cli, "info", imported["store"], "--verify") == imported | {"verified": True}
    assert imported["store"] in [store["store"] for store in told(cli, "info")]
    code, out, _ = cli("data", "info")
    assert code == 0
    assert str(games) in out


def test_info_says_which_store_is_damaged(cli: Cli, games: Path, work: Path) -> None:  # noqa: F811
    path = Path(told(cli, "import", str(games), "--cache-dir", "own")["store"])
    data = bytearray(path.read_bytes())
    data[4096 + 92] ^= 1
    path.write_bytes(data)

    assert "games" in told(cli, "info", str(path))
    assert "`frames` does not match its checksum" in refused(cli, "info", str(path), "--verify")
    (damaged,) = told(cli, "info", "--verify", "--cache-dir", "own")
    assert damaged["unusable"] == "damaged"
    assert "does not match its checksum" in damaged["reason"]


@pytest.mark.parametrize(("version", "state"), [(1, "obsolete"), (VERSION + 1, "newer")])
def test_info_names_stores_of_other_versions(
    cli: Cli,  # noqa: F811
    games: Path,
    version: int,
    state: str,
) -> None:
    path = Path(told(cli, "import", str(games), "--cache-dir", "own")["store"])
    data = bytearray(path.read_bytes())
    data[len(MAGIC)] = version
    path.with_name("other.store").write_bytes(data)

    (other,) = (row for row in told(cli, "info", "--cache-dir", "own") if "unusable" in row)
    assert other["unusable"] == state
    code, out, _ = cli("data", "info", "--cache-dir", "own")
    assert code == 0
    assert other["reason"] in out.splitlines()
    assert f"other.store has version {version}" in refused(cli, "info", "own/other.store")


@pytest.mark.parametrize("form", ["text", "binary"])
def test_exported_chunks_hold_the_games(cli: Cli, form: str) -> None:  # noqa: F811
    code, out, err = cli("data", "export-chunks", "bundled", "-o", "chunks", "--format", form)
    assert code == 0, err
    assert "38181 positions of 180 games in 6 chunks" in out
    assert "games.0.gz .. games.5.gz in chunks" in out

    games = [game for game in read_games(BUNDLED_GAMES) if isinstance(game, Game)]
    assert_same(read_all(Path("chunks")), [encode_game(game) for game in games])


def test_policies_survive_import_and_export(cli: Cli, work: Path) -> None:  # noqa: F811
    game = next(g for g in read_games(BUNDLED_GAMES, workers=1) if isinstance(g, Game))
    records = encode_game(game)
    policy = np.random.default_rng(0).dirichlet([0.1] * 362, len(records)).astype(np.float32)
    soft = Records(records.planes, records.side, policy, records.won)
    write_chunks(work / "soft", [soft])

    imported = told(cli, "import", "soft.0.gz", "--kind", "chunks")
    code, _, err = cli("data", "export-chunks", imported["store"], "-o", "out")

    assert code == 0, err
    assert imported["policies"] == "distributions"
    assert_same(read_all(work / "out"), [soft], tolerance=1e-3)


def test_export_does_not_mix_old_and_new(cli: Cli, games: Path) -> None:  # noqa: F811
    assert cli("data", "export-chunks", str(games), "-o", "out")[0] == 0
    assert "out/games.0.gz is there" in refused(cli, "export-chunks", str(games), "-o", "out")


def test_fetch(cli: Cli, server: FlakyServer) -> None:  # noqa: F811
    server.cuts = [1000]
    code, out, err = cli("data", "fetch", server.url, "-o", "got", "--sha256", SHA256)

    assert code == 0, err
    assert out == f"got/kgs 2017.zip  {len(CONTENT)} bytes  sha256 {SHA256}\n"
    assert Path("got/kgs 2017.zip").read_bytes() == CONTENT


def test_ctrl_c_is_told_and_keeps_what_came(
    cli: Cli,  # noqa: F811
    server: FlakyServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lzsweep.commands.data.Progress.update", press)
        code, out, err = cli("data", "fetch", server.url, "-o", "got")
    assert (code, out, err) == (1, "", "lzsweep: stopped by Ctrl-C\n")
    assert CONTENT.startswith(Path("got/kgs 2017.zip.part").read_bytes())
    assert cli("data", "fetch", server.url, "-o", "got")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "nowhere"], "a data path must exist, but nowhere does not"),
        (["info", "nowhere.store"], "nowhere.store: No such file"),
        (["info", "nowhere"], "nowhere does not"),
        (["import", "bundled", "--filter", "rank=6d"], "handicap, but got rank"),
        (["import", "bundled", "--filter", "min_rank"], "--filter takes KEY=VALUE"),
        (["import", "bundled", "--filter", "komi=[5"], "a list in brackets, but got 'komi=[5'"),
        (["import", "bundled", "--filter", "min_rank=good"], "must be like 5k, 6d or 1p"),
        (["import", "bundled", "--filter", "komi=5"], "`komi` must be a pair"),
        (["import", "bundled", "--filter", "min_moves=999"], "too few moves: 180"),
        (["import", "bundled", "--cache-dir", "/dev/null/x"], "must be writable"),
        (["info", "bundled", "--cache-dir", "/dev/null/x"], "must be imported to be described"),
        (["export-chunks", "bundled", "-o", "/dev/null/x"], "must go to a folder"),
        (["fetch", "nowhere"], "a URL must be http"),
        (["fetch", "http://a/b", "http://a/c", "--sha256", "0"], "once for each URL"),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, arguments: list[str], message: str) -> None:  # noqa: F811
    assert message in refused(cli, *arguments)


@pytest.mark.parametrize("command", ["import", "info", "export-chunks", "fetch"])
def test_help_ends_with_two_examples(cli: Cli, command: str) -> None:  # noqa: F811
    code, out, _ = cli("data", command, "--help")
    assert code == 0
    assert " ".join(out.split()).count(f"lzsweep data {command} ") >= 3


def read_all(folder: Path) -> Records:
    parts = [item for item in read_chunks(folder) if isinstance(item, Records)]
    return _join(parts)


def assert_same(found: Records, games: list[Records], tolerance: float = 0) -> None:
    expected = _join(games)
    for name in ("planes", "side", "won"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.policy, expected.policy, rtol=tolerance, atol=1e-6)


def _join(parts: list[Records]) -> Records:
    names = ("planes", "side", "policy", "won")
    return Records(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

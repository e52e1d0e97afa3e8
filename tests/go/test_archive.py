"""Files, folders, globs and archives, whole and damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzsweep.errors import DataError
from lzsweep.go import archive
from lzsweep.go.archive import Damage, Document, content_digest, find_files, read_documents

GAME = b"(;RE[B+R];B[aa])"


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as target:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(path: Path) -> list[Document | Damage]:
    return list(read_documents(find_files(path)))


MEMBERS = {"a.sgf": GAME, "read.me": b"no game", "deep/b.SGF": GAME + b"2", "c.sgf.gz": b""}
MEMBERS["c.sgf.gz"] = gzip.compress(GAME + b"3")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.zip", zipped(MEMBERS)),
        ("x.tar", tarred(MEMBERS)),
        ("x.tar.gz", gzip.compress(tarred(MEMBERS))),
        ("x.tgz", gzip.compress(tarred(MEMBERS))),
        ("x.tar.bz2", bz2.compress(tarred(MEMBERS))),
        ("x.tar.xz", lzma.compress(tarred(MEMBERS))),
        # The name is not what decides.
        ("x.sgf", zipped(MEMBERS)),
    ],
)
def test_the_games_of_an_archive(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert read(path) == [
        Document(f"{path}!a.sgf", GAME),
        Document(f"{path}!deep/b.SGF", GAME + b"2"),
        Document(f"{path}!c.sgf.gz", GAME + b"3"),
    ]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_one_packed_file(tmp_path: Path, pack: object) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(pack(GAME))  # type: ignore[operator]
    assert read(path) == [Document(str(path), GAME)]


def test_a_folder_gives_its_games_in_order_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b/2.sgf", "b/1.SGF", "a.sgf", "notes.txt", ".hidden.sgf", ".git/x.sgf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(GAME)
    names = [file.relative_to(tmp_path).as_posix() for file in find_files(tmp_path)]
    assert names == ["a.sgf", "b/1.SGF", "b/2.sgf"]
    assert find_files(f"{tmp_path}/**/*.sgf") == [tmp_path / "a.sgf", tmp_path / "b/2.sgf"]
    twice: list[str | Path] = [tmp_path / "a.sgf", str(tmp_path)]
    assert len(find_files(twice)) == 3


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    path = tmp_path / "game[1].sgf"
    path.write_bytes(GAME)
    assert find_files(path) == [path]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("nothing.sgf", r"a data path must exist, but nothing\.sgf does not"),
        ("*.zip", r"a data glob must match some file, but nothing matches \*\.zip"),
        ("empty", r"a data folder must hold \.sgf files or archives, but empty has none"),
        ([], "a data path must be given"),
    ],
)
def test_paths_that_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: str | list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_files(paths)


def test_a_gzip_that_ends_early_still_gives_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.sgf.gz"
    path.write_bytes(gzip.compress(GAME) + gzip.compress(bytes(range(256)) * 9)[:-30])
    document, damage = read(path)
    assert isinstance(document, Document)
    assert document.data.startswith(GAME)
    assert damage == Damage(str(path), "gzip ends early")


def test_a_damaged_member_costs_only_itself(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.sgf": GAME * 30, "b.sgf": GAME}))
    at = data.index(b"a.sgf") + 8
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path = tmp_path / "x.zip"
    path.write_bytes(data)
    damage, document = read(path)
    assert isinstance(damage, Damage)
    assert damage.source == f"{path}!a.sgf"
    assert document == Document(f"{path}!b.sgf", GAME)


def test_more_than_fits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1000)
    zeros = bytes(2_000_000)
    for data in (gzip.compress(zeros), bz2.compress(zeros), lzma.compress(zeros)):
        path = tmp_path / "x.gz"
        path.write_bytes(data)
        assert any(
            "at most 1000 are read" in item.detail
            for item in read(path)
            if isinstance(item, Damage)
        )
    path = tmp_path / "x.sgf"
    path.write_bytes(bytes(2000))
    assert read(path) == [
        Damage(str(path), "2000 bytes or more unpacked, and at most 1000 are read; split it")
    ]


def test_archives_in_archives_have_an_end(tmp_path: Path) -> None:
    data = GAME
    for _ in range(5):
        data = gzip.compress(data)
    path = tmp_path / "x.gz"
    path.write_bytes(data)
    assert read(path) == [Damage(str(path), "archives nested more than 3 deep")]


def test_the_digest_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data must be readable, but .*gone is not"):
        content_digest([tmp_path / "gone"])


@given(
    st.sampled_from([zipped(MEMBERS), tarred(MEMBERS), gzip.compress(tarred(MEMBERS))]),
    st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=8)), max_size=4),
    st.integers(0, 12_000),
)
@settings(max_examples=150, deadline=None)
def test_damaged_archives_give_documents_or_damage_and_never_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    wounds: list[tuple[int, bytes]],
    length: int,
) -> None:
    broken = bytearray(data[:length])
    for at, wound in wounds:
        broken[at : at + len(wound)] = wound
    path = tmp_path_factory.getbasetemp() / "broken.bin"
    path.write_bytes(broken)
    for item in read(path):
        assert isinstance(item, Document | Damage)

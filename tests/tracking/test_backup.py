"""What is no backup is told in one line, and nothing of it is put back."""

from __future__ import annotations

import gzip
import io
import lzma
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from lzsweep.errors import UserError
from lzsweep.tracking.backup import back_up_files, restore_files


@pytest.fixture
def sound(work: Path) -> bytes:
    """A backup of two databases."""
    files = {name: work / f"{name}.db" for name in ("mlflow", "lzsweep")}
    for file in files.values():
        with closing(sqlite3.connect(file)) as db:
            db.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(20000))")
    back_up_files(files, work / "sound.tar")
    return (work / "sound.tar").read_bytes()


@pytest.mark.parametrize(
    "name", ["text", "empty", "cut", "cut.gz", "torn.gz", "cut.xz", "other.tar", "folder", "gone"]
)
def test_what_is_no_backup_is_one_line(name: str, sound: bytes, work: Path) -> None:
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w") as archive:
        archive.add(work / "mlflow.db", "another")
    packed = gzip.compress(sound, mtime=0)
    contents = {
        "text": b"INFO all went well\n" * 99,
        "empty": b"",
        "cut": sound[:9000],
        "cut.gz": packed[: len(packed) // 2],
        "torn.gz": packed[:200] + bytes(20) + packed[220:],
        "cut.xz": lzma.compress(sound)[:200],
        "other.tar": other.getvalue(),
    }
    source = work / name
    if name in contents:
        source.write_bytes(contents[name])
    elif name == "folder":
        source.mkdir()
    targets = {name: work / "new" / f"{name}.db" for name in ("mlflow", "lzsweep")}
    (work / "new").mkdir()
    with pytest.raises(UserError, match=r"^a backup must [^\n]*/" + name) as told:
        restore_files(source, targets)
    assert "\n" not in str(told.value)
    assert not list((work / "new").iterdir())

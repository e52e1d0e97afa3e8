"""Both databases of a server in one file, and back: MLflow's and that of the studies.

A tar archive: `SQLITE` copies of the files (`mlflow.db`, `lzsweep.db`), or pg_dump's archives of a
shared server (`mlflow.dump`, `mlflow_auth.dump`, `lzsweep.dump`). Each is one consistent moment of
its database, while that is used. Uploaded files are no part of it: they are copied as files.
"""

from __future__ import annotations

import lzma
import os
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from lzsweep.errors import UserError
from lzsweep.tracking.postgres import dump, load

SQLITE = ".db"
POSTGRES = ".dump"


def back_up_files(files: Mapping[str, Path], target: Path) -> list[str]:
    """Copy SQLite databases, used or not, into an archive.

    Args:
        files: name in the archive -> file; one that is not there is left out.
        target: the archive; replaced whole.

    Returns:
        The names that were saved.

    Raises:
        UserError: none is there, or one cannot be read, or the archive not written.
    """
    with tempfile.TemporaryDirectory(prefix="lzsweep-") as scratch:
        found = {}
        for name, file in files.items():
            if file.exists():
                found[name + SQLITE] = Path(scratch) / name
                _copy(file, found[name + SQLITE])
        if not found:
            raise UserError(
                f"a database must exist to be saved, but there is none of"
                f" {', '.join(map(str, files.values()))}; go to the folder that was served"
            )
        _pack(found, target)
    return list(found)


def back_up_databases(urls: Mapping[str, str], target: Path) -> list[str]:
    """Save databases of a PostgreSQL; passwords come from PGPASSFILE.

    Raises:
        LzsweepError: one cannot be read.
        UserError: the archive cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="lzsweep-") as scratch:
        found = {name + POSTGRES: Path(scratch) / name for name in urls}
        for name, url in urls.items():
            dump(url, found[name + POSTGRES])
        _pack(found, target)
    return list(found)


def restore_files(source: Path, files: Mapping[str, Path]) -> list[str]:
    """Put SQLite databases back where none are.

    Raises:
        UserError: the archive is none of these, or a database is in the way.
    """
    with tempfile.TemporaryDirectory(prefix="lzsweep-") as scratch:
        found = _unpack(source, Path(scratch), {name + SQLITE: name for name in files})
        if there := [str(files[name]) for name in found if files[name].exists()]:
            raise UserError(
                f"a restored database replaces none, but {', '.join(there)} is there; move it away"
            )
        for name, file in found.items():
            _copy(file, files[name])
    return list(found)


def restore_databases(source: Path, urls: Mapping[str, str]) -> list[str]:
    """Put databases of a PostgreSQL back; what they hold now is replaced.

    Raises:
        UserError: the archive is none of these.
        LzsweepError: a database cannot be written; it is unchanged then.
    """
    with tempfile.TemporaryDirectory(prefix="lzsweep-") as scratch:
        found = _unpack(source, Path(scratch), {name + POSTGRES: name for name in urls})
        for name, file in found.items():
            load(urls[name], file)
    return list(found)


def _copy(source: Path, target: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as one,
            closing(sqlite3.connect(target)) as other,
        ):
            one.backup(other)
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise UserError(f"a SQLite database must be copied, but {source}: {error}") from error


def _pack(files: Mapping[str, Path], target: Path) -> None:
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # The databases hold the hashes of passwords.
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out, tarfile.open(fileobj=out, mode="w") as archive:
            for name, file in files.items():
                archive.add(file, name, recursive=False)
        aside.replace(target)
    except OSError as error:
        raise UserError(
            f"a backup must go to a writable file, but {target}: {error.strerror}"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _unpack(source: Path, folder: Path, wanted: Mapping[str, str]) -> dict[str, Path]:
    """Take the wanted members out: name in the archive -> the name of a database."""
    found = {}
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and member.name in wanted:
                    name = wanted[member.name]
                    archive.makefile(member, folder / name)
                    found[name] = folder / name
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"a backup must be readable, but {source}: {why}") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"a backup must be an archive of `lzsweep serve backup`, but {source} is none, or is"
            " damaged; name another file"
        ) from error
    if not found:
        raise UserError(
            f"a backup must hold {' or '.join(wanted)}, but {source} does not; that of a shared"
            " server is restored with --shared, another one without"
        )
    return found

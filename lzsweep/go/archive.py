"""Where SGF texts come from: files, folders, globs, and archives of any of them.

Archives are known by their first bytes, not by name: gzip, bzip2, xz, zip and tar (plain or
packed), also one inside another. What is damaged becomes a `Damage`, after all that could still be
read; only a path that is not there is an error.
"""

from __future__ import annotations

import bz2
import glob
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lzsweep.errors import DataError

MAX_UNPACKED_BYTES = 1 << 30
MAX_RATIO = 200
"""How many times its packed size a file may unpack to; games come to 10, chunks as text to 50."""
ALWAYS_UNPACKED_BYTES = 64 << 20
"""What a file may unpack to however small it is."""
_MAX_DEPTH = 3
_READ_BYTES = 1 << 20
_ARCHIVE_SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zip", ".tar")

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Document:
    """The bytes of one unpacked file and where they were."""

    source: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """A file, or the rest of one, that could not be read."""

    source: str
    detail: str


def find_files(paths: Paths, suffix: str = ".sgf") -> list[Path]:
    """The files that `paths` mean, in a fixed order.

    A file stands for itself whatever its name, a folder for every `suffix` file and archive below
    it, and a path that does not exist and holds `*`, `?` or `[` for what it matches.

    Raises:
        DataError: if a path is not there, or a folder or a glob holds nothing of the kind.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found += _expand(Path(path).expanduser(), suffix)
    if not found:
        raise DataError("a data path must be given, but the list of paths is empty.")
    return list(dict.fromkeys(found))


def content_digest(files: Sequence[Path]) -> bytes:
    """16 bytes that hang on the files' contents only, not on their names or order."""
    digests = []
    for file in files:
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        except OSError as e:
            raise DataError(f"data must be readable, but {file} is not: {e.strerror}.") from e
        digests.append(digest.digest())
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).digest()


def read_documents(files: Sequence[Path], suffix: str = ".sgf") -> Iterator[Document | Damage]:
    """Unpack `files`, giving every document in them, one at a time."""
    for file in files:
        try:
            size = file.stat().st_size
            if size > MAX_UNPACKED_BYTES and not _is_archive_name(file.name):
                yield Damage(str(file), _too_large(size, MAX_UNPACKED_BYTES))
                continue
            data = file.read_bytes()
        except OSError as e:
            yield Damage(str(file), f"cannot be read: {e.strerror}")
            continue
        yield from _unpack(str(file), data, suffix, _MAX_DEPTH)


def _expand(path: Path, suffix: str) -> list[Path]:
    if path.is_dir():
        files = sorted(_walk(path, suffix))
        if not files:
            raise DataError(
                f"a data folder must hold {suffix} files or archives, but {path} has none."
            )
        return files
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise DataError(f"a data glob must match some file, but nothing matches {path}.")
        return [file for match in matches for file in _expand(Path(match), suffix)]
    raise DataError(f"a data path must exist, but {path} does not (from {Path.cwd()}).")


def _walk(folder: Path, suffix: str) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if _is_wanted(name, suffix):
                yield Path(parent) / name


def _is_wanted(name: str, suffix: str) -> bool:
    base = name.rsplit("/", 1)[-1].lower()
    if base.startswith(".") or "__macosx/" in name.lower():
        return False
    return base.endswith(suffix) or _is_archive_name(base)


def _is_archive_name(name: str) -> bool:
    return name.lower().endswith(_ARCHIVE_SUFFIXES)


def _unpack(source: str, data: bytes, suffix: str, depth: int) -> Iterator[Document | Damage]:
    unpack = _unpacker(data)
    if unpack is None:
        yield Document(source, data)
    elif depth == 0:
        yield Damage(source, f"archives nested more than {_MAX_DEPTH} deep")
    else:
        try:
            for item in unpack(source, data, suffix):
                if isinstance(item, Damage):
                    yield item
                else:
                    yield from _unpack(item.source, item.data, suffix, depth - 1)
        except (
            OSError,
            EOFError,
            ValueError,
            RuntimeError,
            NotImplementedError,
            zlib.error,
            lzma.LZMAError,
            tarfile.TarError,
            zipfile.BadZipFile,
        ) as e:
            yield Damage(source, f"damaged archive: {e or type(e).__name__}")


_Unpacker = Callable[[str, bytes, str], Iterator["Document | Damage"]]


def _unpacker(data: bytes) -> _Unpacker | None:
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _unpack_zip
    if data[257:262] == b"ustar":
        return _unpack_tar
    if data.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")):
        return _unpack_stream
    return None


def _unpack_stream(source: str, data: bytes, suffix: str) -> Iterator[Document | Damage]:
    if data.startswith(b"\x1f\x8b"):
        unpacked, problem = _gunzip(data)
    else:
        opener = bz2.open if data.startswith(b"BZh") else lzma.open
        with opener(io.BytesIO(data)) as stream:
            unpacked, problem = _read_all(stream, _room(len(data)))
    if unpacked or not problem:
        yield Document(source, unpacked)
    if problem:
        yield Damage(source, problem)


def _gunzip(data: bytes) -> tuple[bytes, str | None]:
    """All that a gzip file of one or more members still gives, and what is wrong with the rest."""
    parts: list[bytes] = []
    limit = room = _room(len(data))
    while data.startswith(b"\x1f\x8b"):
        inflater = zlib.decompressobj(wbits=31)
        try:
            part = inflater.decompress(data, room)
        except zlib.error as e:
            return b"".join(parts), f"damaged gzip: {e}"
        parts.append(part)
        room -= len(part)
        if not inflater.eof:
            return b"".join(parts), "gzip ends early" if room else _too_large(limit, limit)
        data = inflater.unused_data.lstrip(b"\x00")
        if room == 0:
            return b"".join(parts), _too_large(limit, limit)
    return b"".join(parts), "bytes after the gzip data" if data else None


def _read_all(stream: IO[bytes], limit: int) -> tuple[bytes, str | None]:
    parts: list[bytes] = []
    size = 0
    try:
        while part := stream.read(_READ_BYTES):
            parts.append(part)
            size += len(part)
            if size > limit:
                return b"", _too_large(size, limit)
    except (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as e:
        return b"".join(parts), f"damaged: {e}"
    return b"".join(parts), None


def _unpack_zip(source: str, data: bytes, suffix: str) -> Iterator[Document | Damage]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.is_dir() or not _is_wanted(member.filename, suffix):
                continue
            name = f"{source}!{member.filename}"
            try:
                with archive.open(member) as stream:
                    unpacked, problem = _read_all(stream, _room(member.compress_size))
            except (RuntimeError, NotImplementedError, zipfile.BadZipFile) as e:
                unpacked, problem = b"", f"damaged or encrypted: {e}"
            yield Damage(name, problem) if problem else Document(name, unpacked)


def _unpack_tar(source: str, data: bytes, suffix: str) -> Iterator[Document | Damage]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if not member.isfile() or not _is_wanted(member.name, suffix):
                continue
            stream = archive.extractfile(member)
            if stream is not None:
                name = f"{source}!{member.name}"
                unpacked, problem = _read_all(stream, _room(len(data)))  # it may be sparse
                yield Damage(name, problem) if problem else Document(name, unpacked)


def _room(packed: int) -> int:
    """Bytes that so many packed ones may unpack to: memory is bounded by the size of the files."""
    return min(MAX_UNPACKED_BYTES, max(ALWAYS_UNPACKED_BYTES, MAX_RATIO * packed))


def _too_large(size: int, limit: int) -> str:
    return f"{size} bytes or more unpacked, and at most {limit} are read; split it"

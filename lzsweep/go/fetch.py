"""Downloads of archives: resumed where they stopped, checked, and there only when complete.

What has come lies in `<name>.part`, beside `<name>.part.json` that tells of which version of the
file it is a part. The rest is asked for by a `Range` that the server honours only for that very
version (`If-Range`), so parts of two versions are never joined.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from time import sleep
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from lzsweep.errors import DataError

Progress = Callable[[int, int | None], None]  # (bytes here so far, bytes in all if known)

_TIMEOUT_S = 30.0
_TRIES = 4
_BLOCK_BYTES = 1 << 18
_GONE = 416  # the server has nothing behind what we have


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is there, whole."""

    path: Path
    sha256: str
    n_bytes: int


def fetch(
    url: str, folder: Path, *, sha256: str | None = None, progress: Progress | None = None
) -> Fetched:
    """Download a file into a folder, going on where an earlier call was stopped.

    Args:
        url: http or https. The file gets the last part of its path as name.
        folder: made if it is not there.
        sha256: what the file must be. One that is there already is checked too, not downloaded.
        progress: called after each piece.

    Raises:
        DataError: the URL is none, the server fails again and again, or the file is another one.
    """
    name = _file_name(url)
    sha256 = sha256.lower() if sha256 else None
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DataError(f"a SHA-256 must be 64 hex digits, but got {sha256!r} for {url}.")
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            if target.exists():
                found = _digest(target)
                if sha256 not in (None, found):
                    raise DataError(
                        f"{target} is there already and must have the SHA-256 {sha256}, but has "
                        f"{found}: delete it, or fetch into another folder."
                    )
            else:
                found = _fetch_new(url, target, sha256, progress)
            return Fetched(target, found, target.stat().st_size)
    except OSError as e:
        raise DataError(
            f"a download must go to a writable folder, but {e.filename or folder}: {e.strerror}."
        ) from e


def _file_name(url: str) -> str:
    parts = urlsplit(url)
    name = unquote(parts.path).rpartition("/")[2].replace("\\", "_")
    if parts.scheme not in ("http", "https") or not parts.netloc or name in ("", ".", ".."):
        raise DataError(f"a URL must be http(s)://host/path/file, but got {url!r}.")
    return name


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch_new(url: str, target: Path, sha256: str | None, progress: Progress | None) -> str:
    part = target.with_name(f"{target.name}.part")
    marker = part.with_name(f"{part.name}.json")
    _download(url, part, marker, progress)
    marker.unlink(missing_ok=True)
    found = _digest(part)
    if sha256 not in (None, found):
        part.unlink()
        raise DataError(
            f"{url} must have the SHA-256 {sha256}, but what came has {found}; it was deleted: "
            "try again, or ask whoever gave the checksum."
        )
    part.replace(target)
    return found


def _download(url: str, part: Path, marker: Path, progress: Progress | None) -> None:
    problem, way_out = "", "try again later"
    for attempt in range(_TRIES):
        if attempt:
            sleep(2.0 ** (attempt - 1))
        try:
            for n_bytes, n_total in _pieces(url, part, marker):
                if progress is not None:
                    progress(n_bytes, n_total)
            return
        except HTTPError as e:
            problem = f"the server answers {e.code} {e.reason}"
            if e.code < 500 and e.code not in (408, 429):
                way_out = "look for another URL"
                break
        except (URLError, HTTPException, ConnectionError, TimeoutError) as e:
            problem = str(getattr(e, "reason", e)) or type(e).__name__
    kept = f"; the first {part.stat().st_size} bytes are kept" if part.exists() else ""
    raise DataError(f"{url} must be there to be fetched, but {problem}{kept}: {way_out}.")


def _pieces(url: str, part: Path, marker: Path) -> Iterator[tuple[int, int | None]]:
    """Append to the part until it is whole, telling bytes here and bytes in all."""
    version = _read_marker(marker, url)
    n_here = part.stat().st_size if version and part.exists() else 0
    headers = {"User-Agent": "lzsweep", "Accept-Encoding": "identity"}
    if n_here and version:
        headers |= {"Range": f"bytes={n_here}-", "If-Range": version}
    try:
        answer = urlopen(Request(url, headers=headers), timeout=_TIMEOUT_S)
    except HTTPError as e:
        if e.code != _GONE or not n_here:
            raise
        # Whole already, or another file by now: only from the start can that be told.
        marker.unlink(missing_ok=True)
        yield from _pieces(url, part, marker)
        return
    with answer:
        start = _range_start(answer.headers) if answer.status == 206 else 0
        if start not in (0, n_here):
            raise HTTPException(f"a range from {start} was sent where {n_here} was asked for")
        length = answer.headers["Content-Length"]
        n_total = start + int(length) if length and length.isdigit() else None
        if not start:
            # In this order: what an older version left must never get the new one's marker.
            part.unlink(missing_ok=True)
            _write_marker(marker, url, answer.headers)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            yield from _copy(answer, file, start, n_total)


def _copy(
    answer: IO[bytes], file: IO[bytes], n_here: int, n_total: int | None
) -> Iterator[tuple[int, int | None]]:
    while block := answer.read(_BLOCK_BYTES):
        file.write(block)
        n_here += len(block)
        yield n_here, n_total
    if n_total is not None and n_here < n_total:
        raise HTTPException(f"the connection ended after {n_here} of {n_total} bytes")


def _range_start(headers: Message) -> int:
    found = re.match(r"bytes (\d+)-", headers["Content-Range"] or "")
    if not found:
        raise HTTPException("a part was sent without saying which")
    return int(found[1])


def _read_marker(marker: Path, url: str) -> str | None:
    try:
        known = json.loads(marker.read_text())
        return str(known["version"]) if known["url"] == url and known["version"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_marker(marker: Path, url: str, headers: Message) -> None:
    # A weak ETag may stand for different bytes.
    tag = headers["ETag"] or ""
    version = tag if tag and not tag.startswith("W/") else headers["Last-Modified"]
    with contextlib.suppress(OSError):
        marker.write_text(json.dumps({"url": url, "version": version}))

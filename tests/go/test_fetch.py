"""Downloads from a server on the loopback that has the faults that servers have."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lzsweep.errors import DataError
from lzsweep.go import fetch as fetch_module
from lzsweep.go.fetch import fetch

CONTENT = random.Random(1).randbytes(1_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class FlakyServer(ThreadingHTTPServer):
    """Serves one file; `cuts` says after how many bytes the next answers break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.tag: str | None = '"one"'
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.ranges: list[str | None] = []
        self.takes_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/sets/kgs%202017.zip?x=1"


class _Handler(BaseHTTPRequestHandler):
    server: FlakyServer

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers["Range"]
        server.ranges.append(wanted)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = 0
        if wanted and server.takes_ranges and self.headers["If-Range"] == server.tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(server.content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if server.tag:
            self.send_header("ETag", server.tag)
        if start:
            end = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{end + 1}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(server.content[start:][:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    monkeypatch.setattr(fetch_module, "sleep", lambda _: None)
    with FlakyServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_comes_whole_and_is_named_by_its_url(server: FlakyServer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []

    fetched = fetch(server.url, tmp_path / "new", progress=lambda *n: told.append(n))

    assert fetched.path == tmp_path / "new" / "kgs 2017.zip"
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.sha256, fetched.n_bytes) == (SHA256, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in fetched.path.parent.iterdir() if p.name[0] != "."] == ["kgs 2017.zip"]


def test_a_broken_connection_is_taken_up_where_it_broke(
    server: FlakyServer, tmp_path: Path
) -> None:
    server.cuts = [400_000, 300_000]

    fetched = fetch(server.url, tmp_path, sha256=SHA256.upper())

    assert fetched.path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=400000-", "bytes=700000-"]


def test_a_later_call_goes_on(server: FlakyServer, tmp_path: Path) -> None:
    server.cuts = [100_000] * 4
    with pytest.raises(DataError, match=r"ended after 400000 .*first 400000 bytes are kept"):
        fetch(server.url, tmp_path)
    assert not (tmp_path / "kgs 2017.zip").exists()

    assert fetch(server.url, tmp_path).path.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=400000-"
    assert [p.name for p in tmp_path.iterdir() if p.name[0] != "."] == ["kgs 2017.zip"]


def test_parts_of_two_versions_are_never_joined(server: FlakyServer, tmp_path: Path) -> None:
    server.cuts = [100_000] * 4
    with pytest.raises(DataError, match="are kept"):
        fetch(server.url, tmp_path)
    server.content, server.tag = CONTENT[::-1], '"two"'

    assert fetch(server.url, tmp_path).path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("how", ["no tag", "weak tag", "no ranges"])
def test_what_cannot_be_taken_up_begins_anew(
    server: FlakyServer, tmp_path: Path, how: str
) -> None:
    server.cuts = [100_000]
    server.tag = {"no tag": None, "weak tag": 'W/"one"'}.get(how, server.tag)
    server.takes_ranges = how != "no ranges"

    assert fetch(server.url, tmp_path, sha256=SHA256).path.read_bytes() == CONTENT


def test_a_part_that_is_whole_already(server: FlakyServer, tmp_path: Path) -> None:
    server.cuts = [100_000] * 4
    with pytest.raises(DataError, match="are kept"):
        fetch(server.url, tmp_path)
    (tmp_path / "kgs 2017.zip.part").write_bytes(CONTENT)

    assert fetch(server.url, tmp_path).path.read_bytes() == CONTENT


def test_another_content_is_refused_and_deleted(server: FlakyServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"must have the SHA-256 {'0' * 64}, but .* {SHA256}"):
        fetch(server.url, tmp_path, sha256="0" * 64)
    assert not list(tmp_path.glob("kgs*.zip*"))


def test_what_is_there_is_not_asked_for_again(server: FlakyServer, tmp_path: Path) -> None:
    fetch(server.url, tmp_path)
    n_requests = len(server.ranges)

    assert fetch(server.url, tmp_path, sha256=SHA256).sha256 == SHA256
    with pytest.raises(DataError, match="is there already and must have the SHA-256 000"):
        fetch(server.url, tmp_path, sha256="0" * 64)
    assert (tmp_path / "kgs 2017.zip").read_bytes() == CONTENT
    assert len(server.ranges) == n_requests


def test_a_busy_server_is_asked_again_a_missing_file_is_not(
    server: FlakyServer, tmp_path: Path
) -> None:
    server.statuses = [503, 429]
    fetch(server.url, tmp_path / "a")
    assert len(server.ranges) == 3

    server.statuses = [404] * 5
    with pytest.raises(DataError, match=r"but the server answers 404 .*: look for another URL"):
        fetch(server.url, tmp_path / "b")
    assert len(server.ranges) == 4


def test_a_server_that_is_not_there(server: FlakyServer, tmp_path: Path) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(DataError, match="Connection refused: try again later"):
        fetch(url, tmp_path)


@pytest.mark.parametrize(
    "url", ["", "games.zip", "file:///etc/passwd", "http://", "http://host/", "http://host/a/.."]
)
def test_what_is_no_url(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a URL must be http"):
        fetch(url, tmp_path)


def test_a_checksum_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be 64 hex digits, but got 'abc'"):
        fetch("http://host/file", tmp_path, sha256="abc")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"must go to a writable folder, but .*file"):
        fetch("http://host/file", tmp_path / "file" / "folder")

"""The model registry: what is not registered is told from a registry that does not answer."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lzsweep.errors import TrackingError, UserError
from lzsweep.tracking.client import connect
from lzsweep.tracking.registry import champion_of, download_from_model

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def answering() -> Iterator[Callable[[Answer], str]]:
    """Starts servers that answer everything alike."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *args: object) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for one in servers:
        one.shutdown()


def failing(status: int, body: bytes) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def silent(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)  # longer than the client waits; a thread of the server's, not of the test


INTERNAL = json.dumps({"error_code": "INTERNAL_ERROR", "message": "the alias table is locked"})


@pytest.mark.parametrize(
    "answer",
    [failing(401, b"who are you?"), failing(400, b"a proxy"), failing(500, INTERNAL.encode()),
     failing(503, b""), silent],
    ids=["401", "400", "500", "503", "silent"],
)  # fmt: skip
def test_a_registry_that_does_not_answer_is_not_an_empty_one(
    answering: Callable[[Answer], str],
    answer: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    uri = answering(answer)
    with pytest.raises(TrackingError, match=r"the registry at .* cannot be read"):
        champion_of(uri, "m")
    with pytest.raises(TrackingError, match="models:/m@champion cannot be had from"):
        download_from_model(uri, "models:/m@champion", "x", tmp_path)


def test_what_is_not_registered_is_missing(uri: str, tmp_path: Path) -> None:
    assert champion_of(uri, "nobody") is None
    connect(uri).create_registered_model(f"m{tmp_path.name}")
    assert champion_of(uri, f"m{tmp_path.name}") is None
    for name in (f"m{tmp_path.name}@champion", "nobody@champion", "nobody/1"):
        with pytest.raises(UserError, match=f"has no models:/{name}; see `lzsweep promote`"):
            download_from_model(uri, f"models:/{name}", "x", tmp_path)

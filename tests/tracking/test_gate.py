"""What passes the gate in front of MLflow, told by a small application behind it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from lzsweep.tracking import gate
from lzsweep.tracking.gate import Gate, Message, Receive, Send

FILE = "/api/2.0/mlflow-artifacts/artifacts/a/b.bin"


class Behind:
    """Reads a body and answers; or answers first, or swallows what goes wrong, or breaks."""

    def __init__(self, manner: str = "plain") -> None:
        self.manner = manner
        self.read = b""
        self.called = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.called += 1
        if self.manner == "early":
            await answer(send, 201)
        try:
            more = True
            while more:
                message = await receive()
                self.read += message["body"]
                more = message["more_body"]
            if self.manner == "broken":
                raise ZeroDivisionError("behind the gate")
        except Exception:
            if self.manner != "swallows":
                raise
            await answer(send, 500)
            return
        if self.manner != "early":
            await answer(send, 200)


async def answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def ask(
    behind: Behind, *body: bytes, announce: bool = False, method: str = "PUT", path: str = FILE
) -> tuple[int, str, int]:
    """Send a body in pieces; the status, the message, and how many pieces were not taken."""
    pieces = [
        {"type": "http.request", "body": piece, "more_body": n < len(body)}
        for n, piece in enumerate(body, 1)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return pieces.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    length = str(sum(map(len, body))).encode()
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(b"content-length", length)] if announce else [],
    }
    asyncio.run(Gate(behind, file_bytes=10)(scope, receive, send))
    starts = [message["status"] for message in sent if message["type"].endswith("start")]
    assert len(starts) == 1, "one answer"
    assert sent[-1]["more_body"] is False
    text = b"".join(message.get("body", b"") for message in sent)
    return starts[0], json.loads(text)["message"] if text else "", len(pieces)


def test_what_is_short_enough_passes() -> None:
    behind = Behind()
    assert ask(behind, b"12345", b"67890", announce=True) == (200, "", 0)
    assert behind.read == b"1234567890"


@pytest.mark.parametrize("manner", ["plain", "swallows"])
def test_a_file_that_is_too_long_is_refused_once(manner: str) -> None:
    behind = Behind(manner)
    status, message, n_left = ask(behind, b"12345", b"67890", b"1", b"2")
    assert (status, n_left) == (413, 0), "the rest was taken and dropped"
    assert message.startswith("an uploaded file must have at most 10 bytes here")
    assert len(behind.read) == 10


def test_what_announces_too_much_never_reaches_the_application() -> None:
    behind = Behind()
    assert ask(behind, b"12345678901", announce=True)[0] == 413
    assert behind.called == 0


def test_who_was_answered_already_gets_no_second_answer() -> None:
    assert ask(Behind("early"), b"12345", b"67890", b"1")[0] == 201


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError, match="behind the gate"):
        ask(Behind("broken"), b"1")


def test_other_requests_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MESSAGE_BYTES", 20)
    batch = "/api/2.0/mlflow/runs/log-batch"
    assert ask(Behind(), b"x" * 20, method="POST", path=batch)[0] == 200
    status, message, _ = ask(Behind(), b"x" * 21, method="POST", path=batch)
    assert status == 413
    assert message == "a request must have at most 20 bytes here, but this one has more"


def test_the_assistant_stays_shut() -> None:
    behind = Behind()
    assert (
        ask(behind, b"{}", method="POST", path="/ajax-api/3.0/mlflow/assistant/message")[0] == 403
    )
    assert behind.called == 0

"""The gate in front of MLflow's application: what no request may do, whoever sends it.

A body may be only so long. A file goes through the artifact proxy to the disk as it comes;
everything else MLflow reads whole into memory before it asks for a password. Neither has an end of
its own. What is too long is refused by status 413 with a text in MLflow's own form, and nothing of
it is kept.

MLflow's assistant stays shut. It runs shell commands as whoever serves, for everybody who comes
from this machine: its other users, and all the world behind a tunnel or a proxy.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MESSAGE_BYTES = 64 * 2**20
"""Limit of what is no file. MLflow's own largest message, a batch, has about a megabyte."""
DRAIN_S = 60.0
"""Time in which the rest of a refused body may come and is dropped."""

_FILES = re.compile(r"/(ajax-)?api/2\.0/mlflow-artifacts/artifacts/")
_ASSISTANT = "/ajax-api/3.0/mlflow/assistant"


class _TooLong(Exception):
    """A body has more bytes than it may have."""


class Gate:
    """An ASGI application that hands on to another what may pass.

    Args:
        app: the application behind it.
        file_bytes: limit of a file.
    """

    def __init__(self, app: App, file_bytes: int) -> None:
        self._app = app
        self._file_bytes = file_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(_ASSISTANT):
            text = "the assistant is off here: it runs shell commands as whoever serves"
            await _Exchange(0, receive, send).refuse(403, "PERMISSION_DENIED", text)
            return
        is_file = scope["method"] == "PUT" and _FILES.match(scope["path"]) is not None
        limit = self._file_bytes if is_file else MESSAGE_BYTES
        exchange = _Exchange(limit, receive, send)
        if _announced(scope) <= limit:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except Exception:
                if not exchange.is_over:
                    raise
            if not exchange.is_over:
                return
        if not exchange.has_answered:
            what = "an uploaded file" if is_file else "a request"
            text = f"{what} must have at most {limit:,} bytes here, but this one has more"
            text += "; see --max-upload-gb of `lzsweep serve`" if is_file else ""
            await exchange.refuse(413, "INVALID_PARAMETER_VALUE", text)


class _Exchange:
    """One request and its answer; counts a body and ends it where it is too long."""

    def __init__(self, limit: int, receive: Receive, send: Send) -> None:
        self._limit = limit
        self._receive = receive
        self._send = send
        self._taken = 0
        self._has_more = True
        self.is_over = False
        self.has_answered = False

    async def receive(self) -> Message:
        if self.is_over:
            raise _TooLong
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        self._has_more = message.get("more_body", False)
        if self._taken > self._limit:
            self.is_over = True
            raise _TooLong  # not an early end: MLflow would take what it has for the whole
        return message

    async def refuse(self, status: int, code: str, text: str) -> None:
        """Answer in MLflow's form, and drop what is left of the body."""
        body = json.dumps({"error_code": code, "message": text}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        # Many clients read no answer before they have sent all of it, and a connection that is
        # closed before looks to them like a network that failed, so that they try again.
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self._has_more:
                    self._has_more = (await self._receive()).get("more_body", False)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(self, message: Message) -> None:
        if self.is_over and not self.has_answered:
            return  # MLflow answers our exception with "internal error"
        self.has_answered = True
        await self._send(message)


def _announced(scope: Message) -> int:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() else 0

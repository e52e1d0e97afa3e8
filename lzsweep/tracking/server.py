"""The MLflow server in this process: one uvicorn, no further workers, ready in seconds.

MLflow's own command starts four worker processes that import everything four times. Here its web
application is imported once and served by threads. The application takes its settings from
variables of the environment that are private to MLflow (`SETTINGS`); a test holds them.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import logging
import os
import signal
import socket
import sqlite3
import ssl
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lzsweep.errors import TrackingError, UserError
from lzsweep.tracking.client import other_version, reason, sqlite_file
from lzsweep.tracking.gate import Gate

if TYPE_CHECKING:
    import uvicorn

SETTINGS = {
    "database": "_MLFLOW_SERVER_FILE_STORE",
    "registry": "_MLFLOW_SERVER_REGISTRY_STORE",
    "root": "_MLFLOW_SERVER_ARTIFACT_ROOT",
    "artifacts": "_MLFLOW_SERVER_ARTIFACT_DESTINATION",
    "proxy": "_MLFLOW_SERVER_SERVE_ARTIFACTS",
}
"""What we tell MLflow -> the variable that its application reads."""

MAX_UPLOAD_BYTES = 5 * 10**9

_PROXIED = "mlflow-artifacts:/"
_KEEP_S = 75
"""Time that a connection may be idle: clients that log now and then would run into its end."""
_STOP_S = 10
"""Time that requests have to end when the server is stopped."""


@dataclass(frozen=True)
class ServerOptions:
    """What is served, and to whom.

    Attributes:
        database: URL of MLflow's database.
        artifacts: folder for the files that clients upload.
        host: address to listen at.
        port: 0 takes a free one.
        environment: further variables for MLflow, such as those of its authentication.
        tls: what it encrypts with; None for plain text.
        with_passwords: whether MLflow's basic authentication guards it.
        max_upload_bytes: limit of a file that a client uploads.
    """

    database: str
    artifacts: Path
    host: str = "127.0.0.1"
    port: int = 5000
    environment: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    with_passwords: bool = False
    max_upload_bytes: int = MAX_UPLOAD_BYTES


def listen(host: str, port: int) -> socket.socket:
    """Take a port, before anything slow is begun.

    Raises:
        UserError: the port is in use, or nobody may have it, or the host is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise UserError(
                f"a server needs a free port, but {host}:{port} is in use; stop what listens"
                " there, or take another one: --port 5001 (0 for any)"
            ) from error
        raise UserError(
            f"a server must be able to listen at {host}:{port}, but: {error}; set --host, --port"
        ) from error
    return taken


def serve(options: ServerOptions, taken: socket.socket, when_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then let requests end.

    Args:
        options: what is served.
        taken: the socket of `listen`.
        when_ready: called once, when the first request would be answered.

    Raises:
        UserError: the database is none of MLflow's, or one of another version.
    """
    check_database(options.database)
    app = Gate(_make_app(options), options.max_upload_bytes)
    import uvicorn

    # A page of runs makes tens of thousands of objects. Without this each look for rubbish among
    # them goes through all that MLflow has imported, which doubles the time of a search.
    gc.freeze()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                when_ready()

    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=_STOP_S,
        timeout_keep_alive=_KEEP_S,
        server_header=False,
        ssl_context_factory=_always(options.tls),
    )
    _run(Server(config), taken)


def _always(tls: ssl.SSLContext | None) -> Callable[..., ssl.SSLContext] | None:
    return None if tls is None else lambda *_: tls


def _run(server: uvicorn.Server, taken: socket.socket) -> None:
    # Uvicorn stops cleanly at a signal and raises it once more for whoever handled it before.
    before = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(server.serve(sockets=[taken]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        taken.close()


def _make_app(options: ServerOptions) -> Any:
    """Import MLflow's application, which reads its settings as it is imported."""
    try:
        options.artifacts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "the folder of uploaded files must be one that can be written, but"
            f" {options.artifacts.absolute()}: {error.strerror}; change to another folder, or set"
            " --artifacts"
        ) from error
    values = {
        "database": options.database,
        "registry": options.database,
        "root": _PROXIED,
        "artifacts": str(options.artifacts.absolute()),
        "proxy": "true",
    }
    os.environ.update({SETTINGS[name]: value for name, value in values.items()})
    os.environ.update(
        {
            "_MLFLOW_SGI_NAME": "uvicorn",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its queue would be more processes
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "ERROR",
            **options.environment,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what MLflow imports; whoever serves cannot help it
        return _import_app(options)


def _import_app(options: ServerOptions) -> Any:
    import mlflow.server.handlers as handlers

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        handlers.initialize_backend_stores(options.database, options.database, _PROXIED)
        if options.with_passwords:
            auth = importlib.import_module("mlflow.server.auth")
            auth.bootstrap_admin_user()
            return auth.create_app()
        return importlib.import_module("mlflow.server.fastapi_app").app
    except Exception as error:  # of SQLAlchemy, alembic or MLflow itself
        raise _judge(error, options.database) from error


def _judge(error: Exception, database: str) -> UserError | TrackingError:
    text = reason(error)
    file = sqlite_file(database)
    where = str(file) if file else "the database"
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return UserError(other_version(where))
    return TrackingError(f"MLflow cannot open {where}: {text}")


def check_database(url: str) -> None:
    """See that a SQLite file is one of MLflow's, or none yet, before the long import.

    Raises:
        UserError: it is something else, or cannot be written.
    """
    file = sqlite_file(url)
    if file is None or not file.exists():
        if file is not None and not file.parent.is_dir():
            raise UserError(f"the folder of the database must exist, but {file.parent} does not")
        if file is not None and not os.access(file.parent, os.W_OK):
            raise UserError(
                "a new database needs a folder that can be written, but"
                f" {file.parent} cannot; change to another folder, or set --database"
            )
        return
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=5)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise UserError(
            f"MLflow's database must be a SQLite file that can be written, but {file}: {error};"
            " set --database"
        ) from error
    if tables and "experiments" not in tables:
        raise UserError(
            f"a database of MLflow must be served, but {file} holds no experiments, so it is"
            " another program's; set --database"
        )

"""The one door to MLflow's own client: its import, its settings, its errors, and no secrets.

Importing mlflow takes seconds, so it happens inside `connect` and nowhere at a module's top.
Tracking URIs are `http(s)://[user:password@]host[:port][/prefix]` or `sqlite:///FILE`; a SQLite
file is used without a server, by several processes of one machine at once, and its artifacts go
to `mlruns/` beside it, whatever folder a process works in.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from filelock import FileLock

from lzsweep.errors import TrackingError
from lzsweep.imports import import_mlflow_client, no_collection

if TYPE_CHECKING:
    from mlflow import MlflowClient

HIDDEN = "***"
"""What stands where a secret was."""

_SQLITE = "sqlite:///"
# The second form is no right address, but SQLAlchemy takes it: a password with `/`, `?` or `#`. A
# port is none.
_USERINFO = re.compile(
    r"(?<=://)(?:[^\s/?#'\"]*|[^\s/?#:@'\"]*:(?!\d+[/?#])[^\s@'\"]*)@",
)
_SECRET_FIELD = re.compile(r"(?i)\b(password|passwd|pwd|token|secret|access_key)=[^&\s'\"]+")

# A server that does not answer costs one short wait: the senders do the retrying, from the disk.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})


class Outage(Exception):
    """The server does not answer, or not now: to be tried again."""


class ServerError(Outage):
    """The server answered "internal error": an outage, or something it cannot digest."""


class Refused(Exception):
    """The server answered and will never take this."""


class Gone(Refused):
    """The run or experiment is not on this server."""


def redact(text: str) -> str:
    """Take passwords and tokens out of a URI or of any text that may hold one."""
    return _SECRET_FIELD.sub(rf"\1={HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", text))


def resolve_uri(uri: str) -> str:
    """Check a tracking URI's form and make a SQLite path absolute.

    Raises:
        TrackingError: It is neither http(s) nor a SQLite file.
    """
    if file := sqlite_file(uri):
        _, mark, options = uri.partition("?")
        return f"{_SQLITE}{file}{mark}{options}"
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        return uri.rstrip("/")
    raise TrackingError(
        "tracking.uri must be http://HOST:PORT, https://HOST or sqlite:///FILE, but got "
        f"{redact(uri)!r}. Without a server use sqlite:///mlflow.db."
    )


def other_version(where: str) -> str:
    """What to say of a database whose schema is not that of the MLflow installed here."""
    return (
        f"the database must be of MLflow {metadata.version('mlflow')}, but {where} is of another"
        " version; with an older one in it, make a copy and run `mlflow db upgrade URL`; with a"
        " newer one, install that MLflow"
    )


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database, absolute; None where a server is meant, or no file."""
    path = url.removeprefix(_SQLITE).partition("?")[0]
    if not url.startswith(_SQLITE) or not path or ":memory:" in path:
        return None
    return Path(path).expanduser().absolute()


def connect(uri: str) -> MlflowClient:
    """MLflow's client for a tracking URI, made once a process.

    Creates a SQLite database that is not there, one process at a time.

    Raises:
        TrackingError: The URI has no form that we serve.
        Outage: The database cannot be opened now.
    """
    return _connect(resolve_uri(uri), os.getpid())


@functools.cache
def _connect(uri: str, pid: int) -> MlflowClient:
    del pid  # A forked child needs connections of its own.
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    file = sqlite_file(uri)
    if file is None:
        import_mlflow_client()
        from mlflow.tracking.client import MlflowClient

        return MlflowClient(tracking_uri=uri)

    # It prints a traceback for each "database is locked"; we retry and tell it in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with no_collection():  # slow: not while holding the lock
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        from mlflow import MlflowClient

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.exists():
                _make_database(file)
            return MlflowClient(tracking_uri=uri)
    except Exception as e:
        raise Outage(reason(e)) from e


def _make_database(file: Path) -> None:
    """Make a SQLite database of MLflow whole or not at all.

    It is made of many migrations, seconds of work, and whoever was killed in the middle would
    leave one behind that MLflow takes for that of an older version.
    """
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    aside = file.with_name(f"{file.name}.partial")
    aside.unlink(missing_ok=True)
    engine = sqlalchemy.create_engine(f"sqlite:///{aside}")
    try:
        _initialize_tables(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()
    aside.replace(file)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of an experiment, made if it is not there.

    Raises:
        Refused: It is deleted, or cannot have this name.
        Outage: The server does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            file = sqlite_file(uri)
            place = (file.parent / "mlruns" / quote(name, safe="")).as_uri() if file else None
            try:
                return str(
                    client.create_experiment(
                        name,
                        artifact_location=place,
                        # Else MLflow's page shows its view for language models.
                        tags={"mlflow.experimentKind": "custom_model_development"},
                    )
                )
            except MlflowException as e:
                if e.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)
    except Exception as e:
        raise classify(e) from e
    if found is None or found.lifecycle_stage != "active":
        raise Refused(f"MLflow experiment {name!r} is deleted; restore it or choose another name")
    return str(found.experiment_id)


def classify(error: Exception) -> Outage | Refused:
    """Say what a failed call means for what was to be sent; the text holds no secrets."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import HTTPError, RequestException

    text = reason(error)
    if isinstance(error, HTTPError) and error.response is not None:
        return _classify_status(error.response.status_code, text)
    if isinstance(error, RequestException):
        return Outage(text)
    if isinstance(error, MlflowException):
        # A text like this is no answer of MLflow's: nobody answered, or a proxy did.
        foreign = text.startswith("API request")
        if "Max retries exceeded" in text and "error responses" not in text:
            return Outage(unreachable(text))
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" and not foreign:
            return Gone(text)
        if (error.error_code in _REFUSALS and not foreign) or "error code 413" in text:
            return Refused(text)
        internal = error.error_code == "INTERNAL_ERROR" and not foreign
        if internal or "too many 500 error responses" in text:
            return ServerError(text)
        return Outage(text)
    if isinstance(error, (Outage, Refused)):
        return error
    return ServerError(text)  # A store for artifacts with a client of its own, or a bug.


def _classify_status(status: int, text: str) -> Outage | Refused:
    if status == 500:
        return ServerError(text)
    if 400 <= status < 500 and status not in (408, 429):
        return Refused(text)  # Of a file alone; `outbox` sees whether the server is well.
    return Outage(text)


def unreachable(text: str) -> str:
    """Say in a few words why nothing was heard from a host, from the text of a failed request."""
    for sign, meaning in (
        ("Connection refused", "the connection was refused"),
        ("timed out", "it did not answer in time"),
        ("Connection aborted", "the connection broke"),
        ("Name or service not known", "there is no host of that name"),
        ("No address associated", "there is no host of that name"),
        ("name resolution", "the host's name cannot be resolved"),
        ("No route to host", "there is no route to that host"),
    ):
        if sign in text:
            return meaning
    return text


def reason(error: BaseException) -> str:
    """One line on an error, without secrets and without end."""
    text = " ".join(redact(str(error)).split())
    return (text or type(error).__name__)[:400]

"""The study database as a connection: SQLite or PostgreSQL, its address, its lock.

SQLite serves the workers of one machine; every transaction takes the write lock as it begins.
PostgreSQL serves many machines. Passwords come from PGPASSFILE or the environment, and no text
made here shows one.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import filelock
import psutil
import sqlalchemy
import tenacity
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from lzsweep.errors import UserError
from lzsweep.tracking.client import redact, sqlite_file

GRACE_S = 60
"""Silence after which a worker on another machine counts as lost."""
DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError)
"""What a database that does not answer raises."""
PATIENCE_S = 3600.0
"""Time that a lost database is waited for before a worker or a controller gives up."""

NETWORK_FILE_SYSTEMS = frozenset(
    [
        "afs",
        "beegfs",
        "ceph",
        "cephfs",
        "cifs",
        "glusterfs",
        "gpfs",
        "juicefs",
        "lustre",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb3",
        "smbfs",
        "sshfs",
        "wekafs",
    ]
)
"""Where SQLite's locks and its shared memory do not hold between machines, by type."""

P = ParamSpec("P")
T = TypeVar("T")

_logger = logging.getLogger(__name__)
_of_threads: dict[str, threading.Lock] = {}  # by the name of the lock
_compatible: set[str] = set()  # databases whose tables this process found to be Optuna's of now


def first_line(error: BaseException | None) -> str:
    """The first line of an error's root cause; SQLAlchemy puts pages behind it."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return redact((str(error).strip().splitlines() or [""])[0])


def patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call something that asks the study database, and wait while that does not answer.

    Raises:
        DATABASE_ERRORS: it did not answer for `PATIENCE_S`.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(DATABASE_ERRORS),
        wait=tenacity.wait_random_exponential(max=10),
        stop=tenacity.stop_after_delay(PATIENCE_S),
        before_sleep=lambda state: _logger.warning(
            "the study database does not answer: %s",
            first_line(state.outcome.exception()) if state.outcome else "",
        ),
        reraise=True,
    )
    return retrying(call, *args, **kwargs)


def absolute_url(url: str) -> str:
    """The URL as another process in another folder needs it, with our database drivers.

    Raises:
        UserError: it is no URL of a database.
    """
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError) as error:  # the latter of a port that is no number
        raise UserError(
            f"study.storage must be the URL of a database, but got {shown_url(url)!r};"
            " write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql", "postgres"):
        raise UserError(
            f"study.storage must be of SQLite or PostgreSQL, but got {shown_url(url)!r};"
            " write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    if file := sqlite_file(url):
        parsed = parsed.set(database=str(file))
    elif parsed.get_backend_name() == "sqlite":
        raise UserError(
            f"study.storage must be a file, which its workers share, but got {url!r};"
            " write sqlite:///FILE"
        )
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)


def is_there(url: str) -> bool:
    """Whether there is such a database; of a server nobody knows before it is asked.

    To open a SQLite file that is not there makes it, and a typo would leave it behind.
    """
    file = sqlite_file(url)
    return file is None or file.exists()


def network_mount(file: Path) -> str | None:
    """The network file system that a file lies on, as `nfs4 (/home)`; None for a local one."""
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    place = file.resolve()
    mount = next((m for m in (place, *place.parents) if m in mounts), None)
    if mount is None or mounts[mount].removeprefix("fuse.") not in NETWORK_FILE_SYSTEMS:
        return None
    return f"{mounts[mount]} ({mount})"


def shown_url(url: str) -> str:
    """The URL for people: without its password, wherever that stands."""
    shown = redact(url)
    return shown if "://" in url else shown.rpartition("@")[2]  # mistyped, and no URL at all


def open_storage(url: str) -> RDBStorage:
    try:
        url = absolute_url(url)
        file = sqlite_file(url)
        if file and not file.parent.is_dir():
            raise UserError(
                f"the folder of the study database must exist, but {shown_url(url)} lies in none;"
                " make it or set study.storage"
            )
        kwargs: dict[str, Any] = (
            {"connect_args": {"timeout": 60}} if file else {"pool_pre_ping": True}
        )
        once = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)  # keeps no connection
        if file and file.exists() and url not in _compatible:
            _check_optunas(once, file)
        # Optuna creates its tables without a lock, and two first workers would collide.
        with warnings.catch_warnings(), database_lock(once, "lzsweep"):
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = RDBStorage(
                url,
                engine_kwargs=kwargs,
                skip_compatibility_check=url in _compatible,
                heartbeat_interval=GRACE_S // 2,
                grace_period=GRACE_S,
            )
    except (*DATABASE_ERRORS, ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"the study database must answer, but {shown_url(url)} says:"
            f" {first_line(error)}; {'' if file else 'start it or '}set study.storage"
        ) from error
    _compatible.add(url)
    if file:
        _begin_immediate(storage.engine)
    storage.engine.dispose()  # setting up took several connections, work takes one
    return storage


def _check_optunas(engine: sqlalchemy.Engine, file: Path) -> None:
    # Opened as a study's, each other database would get Optuna's tables.
    tables = set(sqlalchemy.inspect(engine).get_table_names())
    if tables and not tables & {"studies", "version_info"}:
        whose = "MLflow" if "experiments" in tables else "another program"
        raise UserError(
            f"the study database must be one of studies, but {file} is that of {whose};"
            " set study.storage, as sqlite:///lzsweep.db"
        )


def _begin_immediate(engine: sqlalchemy.Engine) -> None:
    # A deferred transaction that reads before it writes fails at once with "database is locked"
    # when another writer came between; taking the write lock first makes it wait instead.
    @sqlalchemy.event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def _(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def database_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    if engine.dialect.name == "sqlite":
        # One lock file a database: its studies are few and a claim takes milliseconds.
        with filelock.FileLock(f"{engine.url.database}.lock"):
            yield
        return
    key = sqlalchemy.func.hashtext(name)
    # Of the threads of a process one asks the database: each that waits there has a connection,
    # and whoever has the lock must still find one in the pool.
    with _of_threads.setdefault(name, threading.Lock()), engine.connect() as connection:
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(key)))
        try:
            yield
        finally:
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_unlock(key)))

"""A shared server's home: its secrets, its settings, what users of it export.

HOME/secrets.json   passwords and keys, made at the first start      0600
HOME/pgpass         the same for libpq: whoever serves is superuser  0600
HOME/auth.ini       MLflow's settings of its authentication, without a password
HOME/users.env      what users export; `. HOME/users.env` does it    0600
HOME/users.pgpass   and for libpq                                    0600
HOME/postgres/      the database's files, where it is our own
HOME/artifacts/     files that runs upload
"""

from __future__ import annotations

import json
import secrets
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from lzsweep.errors import UserError
from lzsweep.files import write_secret
from lzsweep.tracking.client import redact
from lzsweep.tracking.postgres import SUPERUSER, Database, Place

ADMIN = "admin"
MLFLOW = "mlflow"
AUTH = "mlflow_auth"
STUDIES = "lzsweep"

_AUTH_INI = """[mlflow]
default_permission = READ
database_uri = {uri}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = false
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True)
class Secrets:
    """What nobody else may know."""

    admin: str
    superuser: str
    mlflow: str
    studies: str
    flask: str


@dataclass(frozen=True)
class Home:
    """A shared server's folder, opened by the one process that serves it.

    Attributes:
        folder: mode 0700.
        secrets: of this server.
        is_new: whether they were made just now.
    """

    folder: Path
    secrets: Secrets
    is_new: bool

    def databases(self) -> list[Database]:
        known = self.secrets
        return [
            Database(MLFLOW, MLFLOW, known.mlflow),
            Database(AUTH, MLFLOW, known.mlflow),
            Database(STUDIES, STUDIES, known.studies, is_remote=True),
        ]

    def place(self, host: str, port: int) -> Place:
        return Place(self.folder / "postgres", host, port, self.folder / "pgpass")

    def environment(self, auth_url: str, hosts: str, origins: str) -> dict[str, str]:
        """The variables of MLflow's authentication, for our own process; see `allowed`."""
        ini = self.folder / "auth.ini"
        # A URL may hold percent signs, which an ini file would read as its own.
        write_secret(ini, _AUTH_INI.format(uri=auth_url.replace("%", "%%")))
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(ini),
            "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.secrets.admin,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secrets.flask,
            "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": origins,
            # Forty threads serve requests; MLflow's own pool has five connections.
            "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20",
            "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "40",
        }

    def write_passfile(self, port: int) -> Path:
        """Write libpq's file for whoever serves."""
        known = self.secrets
        users = {SUPERUSER: known.superuser, MLFLOW: known.mlflow, STUDIES: known.studies}
        lines = [f"127.0.0.1:{port}:*:{user}:{password}\n" for user, password in users.items()]
        path = self.folder / "pgpass"
        write_secret(path, "".join(lines))
        return path

    def write_user_files(self, uri: str, storage: URL, *, with_password: bool) -> list[str]:
        """Write what users export and return it line by line.

        Args:
            uri: of the MLflow server, as users reach it.
            storage: the study database, as users reach it, without a password.
            with_password: whether the study database is ours and its password known.
        """
        exports = {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_TRACKING_USERNAME": ADMIN,
            "MLFLOW_TRACKING_PASSWORD": self.secrets.admin,
            "LZSWEEP_STORAGE": storage.render_as_string(hide_password=True),
        }
        lines = [f"export {key}={shlex.quote(value)}" for key, value in exports.items()]
        if with_password:
            passfile = self.folder / "users.pgpass"
            entry = f"{storage.host}:{storage.port}:*:{storage.username}:{self.secrets.studies}"
            write_secret(passfile, entry + "\n")
            write_secret(
                self.folder / "users.env",
                "\n".join([*lines, f"export PGPASSFILE={shlex.quote(str(passfile))}", ""]),
            )
            return [*lines, f"(umask 077; echo {shlex.quote(entry)} >> ~/.pgpass)"]
        write_secret(self.folder / "users.env", "\n".join([*lines, ""]))
        return lines


@contextmanager
def open_home(folder: Path) -> Iterator[Home]:
    """Open a shared server's folder, made and filled at the first time, for one process.

    Raises:
        UserError: another process has it, or it cannot be written, or is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = filelock.FileLock(folder / "lock", timeout=0).acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"a server's folder is served by one process, but another one has {folder}; stop it"
            " first, or set --home"
        ) from error
    except OSError as error:
        raise UserError(
            f"a server needs a folder that it may write, but {folder}: {error.strerror};"
            " set --home"
        ) from error
    with lock:
        path = folder / "secrets.json"
        is_new = not path.exists()
        if is_new:
            made = Secrets(*(secrets.token_urlsafe(24) for _ in Secrets.__dataclass_fields__))
            write_secret(path, json.dumps(asdict(made), indent=1))
        try:
            known = Secrets(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path} must hold this server's secrets, but is damaged; put it back from a"
                " backup, or set --home"
            ) from error
        yield Home(folder, known, is_new)


def is_open(folder: Path) -> bool:
    """Whether a process serves this folder now."""
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            return False
    except filelock.Timeout:
        return True


def existing_server(text: str) -> URL:
    """The address of an existing PostgreSQL, in which databases may be made.

    Raises:
        UserError: it is no such address, or holds a password.
    """
    try:
        url = make_url(text)
    except SQLAlchemyError:
        url = None
    if url is None or not url.drivername.startswith("postgres") or not url.host:
        raise UserError(
            f"--postgres must be postgresql://USER@HOST[:PORT], but got {redact(text)!r}"
        )
    if url.password:
        raise UserError(
            "a password must not stand in a command line, but --postgres holds one; put it into"
            " PGPASSFILE (~/.pgpass)"
        )
    return url.set(drivername="postgresql+psycopg")


def ensure_databases(server: URL) -> None:
    """Make the databases in an existing PostgreSQL where they are not there.

    Raises:
        UserError: it does not answer, refuses us, or we may not make databases.
    """
    import psycopg
    from psycopg import sql

    try:
        with psycopg.connect(
            host=server.host,
            port=server.port or 5432,
            user=server.username,
            dbname=server.database or "postgres",
            connect_timeout=10,
            autocommit=True,
        ) as connection:
            rows = connection.execute("SELECT datname FROM pg_database").fetchall()
            for name in (MLFLOW, AUTH, STUDIES):
                if (name,) not in rows:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"an existing PostgreSQL must let us in and make databases, but {server} says:"
            f" {redact(text)}; see PGPASSFILE, or make {MLFLOW}, {AUTH} and {STUDIES} there"
        ) from error


def names_of(host: str) -> list[str]:
    """The names by which a machine that listens at an address may be reached."""
    own = [] if host in ("0.0.0.0", "::", "") else [host]
    names = ["localhost", "127.0.0.1", *own, socket.gethostname(), socket.getfqdn()]
    return list(dict.fromkeys(f"[{name}]" if name.count(":") > 1 else name for name in names))


def allowed(names: Sequence[str], port: int) -> tuple[str, str]:
    """What may stand in a Host and in an Origin header, as MLflow takes both.

    MLflow refuses what a browser sends from a page of another origin, and takes that page of its
    own, if it was reached by a name, for one of those.

    Args:
        names: by which users reach the server, `*` for any; one with a port holds for that port.
        port: where it listens.
    """
    hosts, origins = [], []
    for name in names:
        if name == "*" or _has_port(name):
            hosts.append(name)
        else:
            # MLflow takes these for patterns, where a bracket begins a set.
            hosts += [name, f"{name.replace('[', '[[]', 1)}:*"]
        if name == "*":
            origins.append(name)
            continue
        known = [name] if _has_port(name) else [name, f"{name}:{port}"]
        origins += [f"{scheme}://{place}" for scheme in ("http", "https") for place in known]
    return ",".join(hosts), ",".join(origins)


def without_port(name: str) -> str:
    """The host of `host`, `host:port`, `[address]` or `[address]:port`."""
    return name.rpartition(":")[0] if _has_port(name) else name


def _has_port(name: str) -> bool:
    return ":" in name.rpartition("]")[2]

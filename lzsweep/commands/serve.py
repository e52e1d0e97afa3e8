"""`serve`: the central server, on this machine or for a group."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.engine import URL

from lzsweep.commands import app
from lzsweep.errors import UserError
from lzsweep.tracking.backup import (
    back_up_databases,
    back_up_files,
    restore_databases,
    restore_files,
)
from lzsweep.tracking.client import redact, resolve_uri
from lzsweep.tracking.postgres import running
from lzsweep.tracking.runs import check_server
from lzsweep.tracking.server import ServerOptions, listen, serve
from lzsweep.tracking.shared import (
    AUTH,
    MLFLOW,
    STUDIES,
    Home,
    default_hosts,
    ensure_databases,
    existing_server,
    is_open,
    open_home,
)

DATABASE = "sqlite:///mlflow.db"
HOME = Path("~/.local/share/lzsweep/server")
STORAGE = "sqlite:///lzsweep.db"
POSTGRES_PORT = 5433

serve_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help="Serve what was recorded: MLflow's pages and its programming interface.",
    epilog="Examples:  lzsweep serve   |   lzsweep serve --shared --host 0.0.0.0",
)
app.add_typer(serve_app, name="serve")


HomeFolder = Annotated[Path, typer.Option(help="Folder of a shared server.")]
Postgres = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="An existing PostgreSQL (postgresql://USER@HOST; its password in PGPASSFILE);"
        " by default one of its own.",
    ),
]
PostgresPort = Annotated[int, typer.Option(help="Port of its own PostgreSQL.")]


@dataclass(frozen=True)
class Shared:
    """The options of `--shared`."""

    home: Path
    postgres: str | None
    postgres_port: int
    allowed_hosts: str | None


@serve_app.callback()
def serve_command(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for all, with --shared.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 5000,
    database: Annotated[
        str, typer.Option(help="MLflow's SQLite database, without --shared.")
    ] = DATABASE,
    artifacts: Annotated[
        Path, typer.Option(help="Folder for files that clients upload, without --shared.")
    ] = Path("mlartifacts"),
    shared: Annotated[
        bool, typer.Option("--shared", help="PostgreSQL and passwords, for others on the network.")
    ] = False,
    home: HomeFolder = HOME,
    postgres: Postgres = None,
    postgres_port: PostgresPort = POSTGRES_PORT,
    allowed_hosts: Annotated[
        str | None,
        typer.Option(help="Names by which users may reach it, the first in what is printed."),
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(help="TLS: the private key; uvicorn's options, all three.")
    ] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="TLS: the certificate.")] = None,
    ssl_ca_certs: Annotated[
        Path | None, typer.Option(help="TLS: who signs clients' certificates.")
    ] = None,
) -> None:
    """Serve the runs recorded in this folder to this machine, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    tls = {"ssl_keyfile": ssl_keyfile, "ssl_certfile": ssl_certfile, "ssl_ca_certs": ssl_ca_certs}
    uvicorn = {key: str(path) for key, path in tls.items() if path is not None}
    _check_tls(uvicorn)
    if shared:
        _serve_shared(host, port, Shared(home, postgres, postgres_port, allowed_hosts), uvicorn)
    else:
        _serve_here(ServerOptions(database, artifacts, host, port, uvicorn=uvicorn))
    print("stopped")


def _check_tls(uvicorn: dict[str, str]) -> None:
    if missing := [path for path in uvicorn.values() if not Path(path).is_file()]:
        raise UserError(f"files for TLS must exist, but {', '.join(missing)} does not")
    if uvicorn and not {"ssl_keyfile", "ssl_certfile"} <= set(uvicorn):
        raise UserError("TLS takes both --ssl-keyfile and --ssl-certfile")


def _serve_here(options: ServerOptions) -> None:
    if not options.database.startswith("sqlite:///"):
        raise UserError(
            "serve without --shared needs a SQLite database (sqlite:///FILE), but got"
            f" {redact(options.database)}"
        )
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        raise UserError(
            f"without passwords only this machine may be served, but got --host {options.host};"
            " use --shared, or leave it out and reach it through ssh -L"
        )
    resolve_uri(options.database)
    with listen(options.host, options.port) as taken:
        here = _address(options.host, taken.getsockname()[1], options.uvicorn)
        print(f"opening {options.database} ...", flush=True)

        def when_ready() -> None:
            print(f"MLflow is ready at {here} (Ctrl-C stops it)")
            print(f"log to it: export MLFLOW_TRACKING_URI={here}", flush=True)

        serve(options, taken, when_ready)


def _serve_shared(host: str, port: int, options: Shared, uvicorn: dict[str, str]) -> None:
    if host not in ("127.0.0.1", "localhost", "::1") and not uvicorn:
        print("note: without TLS (--ssl-keyfile, --ssl-certfile) passwords travel in plain text")
    with (
        listen(host, port) as taken,
        open_home(options.home.expanduser()) as home,
        _databases(home, host, options) as server,
    ):
        name = (options.allowed_hosts or "").split(",")[0].partition(":")[0]
        name = name if name and "*" not in name else _reachable(host)
        here = _address(name, taken.getsockname()[1], uvicorn)
        storage = server.set(drivername="postgresql", database=STUDIES)
        if not options.postgres:
            storage = storage.set(host=name, username=STUDIES)

        def when_ready() -> None:
            lines = home.write_user_files(here, storage, with_password=not options.postgres)
            print(f"MLflow is ready at {here} (Ctrl-C stops it)")
            if home.is_new:
                print("its users export, shown this once:\n")
                print("\n".join(lines), end="\n\n")
            print(f"what users export stands in {home.folder / 'users.env'}", flush=True)

        environment = home.environment(
            _render(server, AUTH), _with_ports(options.allowed_hosts) or default_hosts()
        )
        serve(
            ServerOptions(
                database=_render(server, MLFLOW),
                artifacts=home.folder / "artifacts",
                host=host,
                port=port,
                environment=environment,
                uvicorn=uvicorn,
                with_passwords=True,
            ),
            taken,
            when_ready,
        )


@contextmanager
def _databases(home: Home, host: str, options: Shared) -> Iterator[URL]:
    """The PostgreSQL of a shared server while the body runs: its address, as MLflow's role."""
    if options.postgres:
        server = existing_server(options.postgres)
        ensure_databases(server)
        yield server
        return
    place = home.place(host, options.postgres_port)
    os.environ["PGPASSFILE"] = str(home.write_passfile(place.port))
    with running(place, home.secrets.superuser, home.databases()):
        yield URL.create("postgresql+psycopg", MLFLOW, host="127.0.0.1", port=place.port)


def _render(server: URL, database: str) -> str:
    return server.set(database=database).render_as_string(hide_password=False)


def _with_ports(names: str | None) -> str:
    given = [name.strip() for name in (names or "").split(",") if name.strip()]
    return ",".join(n if ":" in n or n == "*" else f"{n},{n}:*" for n in given)


def _reachable(host: str) -> str:
    return socket.getfqdn() if host in ("0.0.0.0", "::") else host


def _address(host: str, port: int, uvicorn: Mapping[str, Any]) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if uvicorn else 'http'}://{shown}:{port}"


IsShared = Annotated[bool, typer.Option("--shared", help="The databases of a shared server.")]
ServedDatabase = Annotated[str, typer.Option(help="MLflow's, without --shared.")]
StudyDatabase = Annotated[
    str, typer.Option(envvar="LZSWEEP_STORAGE", help="That of the studies, without --shared.")
]
Archive = Annotated[Path, typer.Argument(metavar="FILE", help="The archive (tar).")]


@serve_app.command(
    epilog="Examples:  lzsweep serve backup monday.tar   |   lzsweep serve backup x.tar --shared"
)
def backup(
    file: Archive,
    shared: IsShared = False,
    home: HomeFolder = HOME,
    postgres: Postgres = None,
    postgres_port: PostgresPort = POSTGRES_PORT,
    database: ServedDatabase = DATABASE,
    storage: StudyDatabase = STORAGE,
) -> None:
    """Save both databases, MLflow's and that of the studies, while they are used or not."""
    if shared:
        with _all_databases(Shared(home, postgres, postgres_port, None)) as urls:
            saved = back_up_databases(urls, file)
    else:
        saved = back_up_files(_files(database, storage), file)
    print(f"{file}: {', '.join(saved)}; uploaded files are no part of it")


@serve_app.command(
    epilog="Examples:  lzsweep serve restore monday.tar   |   lzsweep serve restore x.tar --shared"
)
def restore(
    file: Archive,
    shared: IsShared = False,
    home: HomeFolder = HOME,
    postgres: Postgres = None,
    postgres_port: PostgresPort = POSTGRES_PORT,
    database: ServedDatabase = DATABASE,
    storage: StudyDatabase = STORAGE,
) -> None:
    """Put both databases back as `backup` found them; a shared server must be stopped."""
    if shared:
        with _all_databases(Shared(home, postgres, postgres_port, None), alone=True) as urls:
            back = restore_databases(file, urls)
    else:
        back = restore_files(file, _files(database, storage))
    print(f"restored {', '.join(back)} from {file}")


def _files(*urls: str) -> dict[str, Path]:
    files = {}
    for name, url in zip((MLFLOW, STUDIES), urls, strict=True):
        if not url.startswith("sqlite:///"):
            raise UserError(f"without --shared databases are SQLite files, but got {redact(url)}")
        files[name] = Path(url.removeprefix("sqlite:///"))
    return files


@contextmanager
def _all_databases(options: Shared, *, alone: bool = False) -> Iterator[dict[str, str]]:
    """The addresses of a shared server's databases; ours is started where it does not run."""
    home = options.home.expanduser()
    if not (home / "secrets.json").exists() and not options.postgres:
        raise UserError(f"a shared server's folder must exist, but {home} is none; set --home")
    is_served = not options.postgres and is_open(home)
    if is_served and alone:
        raise UserError(f"the server of {home} must be stopped first, but it runs")
    if is_served:
        os.environ["PGPASSFILE"] = str(home / "pgpass")
        own = URL.create(
            "postgresql+psycopg", MLFLOW, host="127.0.0.1", port=options.postgres_port
        )
        yield _owned(own)
    elif options.postgres:
        server = existing_server(options.postgres)
        ensure_databases(server)
        yield {name: _render(server, name) for name in (MLFLOW, AUTH, STUDIES)}
    else:
        with open_home(home) as opened, _databases(opened, "127.0.0.1", options) as server:
            yield _owned(server)


def _owned(server: URL) -> dict[str, str]:
    studies = server.set(username=STUDIES)
    owners = {MLFLOW: server, AUTH: server, STUDIES: studies}
    return {name: _render(owner, name) for name, owner in owners.items()}


@serve_app.command(
    epilog="Examples:  lzsweep serve health   |   lzsweep serve health http://lab:5000"
)
def health(
    uri: Annotated[
        str, typer.Argument(envvar="MLFLOW_TRACKING_URI", help="The server's address.")
    ] = "http://127.0.0.1:5000",
) -> None:
    """Ask a server whether it answers and lets us in; exit code 1 if not."""
    check_server(uri)
    print(f"{redact(uri)} answers")

"""`serve`: the central server, on this machine or for a group."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.engine import URL

from lzsweep.commands import MLFLOW_FILE, STUDIES_FILE, app
from lzsweep.errors import UserError
from lzsweep.tracking.backup import (
    back_up_databases,
    back_up_files,
    restore_databases,
    restore_files,
)
from lzsweep.tracking.client import redact, resolve_uri, sqlite_file
from lzsweep.tracking.postgres import running
from lzsweep.tracking.runs import check_server
from lzsweep.tracking.server import MAX_UPLOAD_BYTES, ServerOptions, listen, serve
from lzsweep.tracking.shared import (
    AUTH,
    MLFLOW,
    STUDIES,
    Home,
    allowed,
    ensure_databases,
    existing_server,
    is_open,
    names_of,
    open_home,
)

HOME = Path("~/.local/share/lzsweep/server")
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
    allowed_hosts: str | None = None


@serve_app.callback()
def serve_command(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for all, with --shared.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 5000,
    database: Annotated[
        str, typer.Option(help="MLflow's SQLite database, without --shared.")
    ] = MLFLOW_FILE,
    artifacts: Annotated[
        Path, typer.Option(help="Folder for files that clients upload, without --shared.")
    ] = Path("mlartifacts"),
    max_upload_gb: Annotated[
        float, typer.Option(help="The largest file that clients may upload.")
    ] = MAX_UPLOAD_BYTES / 1e9,
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
        Path | None,
        typer.Option(help="TLS: clients must have a certificate, signed by one of these."),
    ] = None,
) -> None:
    """Serve the runs recorded in this folder to this machine, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    if max_upload_gb <= 0:
        raise UserError(f"--max-upload-gb must be above 0, but got {max_upload_gb}")
    options = ServerOptions(
        database,
        artifacts,
        host,
        port,
        uvicorn=_tls(ssl_keyfile, ssl_certfile, ssl_ca_certs),
        max_upload_bytes=int(max_upload_gb * 1e9),
    )
    if shared:
        _serve_shared(options, Shared(home, postgres, postgres_port, allowed_hosts))
    else:
        _serve_here(options)
    print("stopped")


def _tls(keyfile: Path | None, certfile: Path | None, ca_certs: Path | None) -> dict[str, Any]:
    """Uvicorn's arguments."""
    given = {"ssl_keyfile": keyfile, "ssl_certfile": certfile, "ssl_ca_certs": ca_certs}
    files = {name: str(path) for name, path in given.items() if path is not None}
    if missing := [path for path in files.values() if not Path(path).is_file()]:
        raise UserError(f"files for TLS must exist, but {', '.join(missing)} does not")
    if files and not {"ssl_keyfile", "ssl_certfile"} <= set(files):
        raise UserError("TLS takes both --ssl-keyfile and --ssl-certfile")
    if not files:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_certs).load_cert_chain(
            files["ssl_certfile"], files["ssl_keyfile"], password=""
        )
    except (OSError, ValueError) as error:
        raise UserError(
            "TLS takes a private key without a passphrase, the certificate for it and, as"
            f" --ssl-ca-certs, certificates, all as PEM, but {', '.join(files.values())}: {error}"
        ) from error
    # Without this the names of those who sign would be taken and nobody be asked.
    return files | ({"ssl_cert_reqs": ssl.CERT_REQUIRED} if ca_certs else {})


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


def _serve_shared(options: ServerOptions, shared: Shared) -> None:
    host = options.host
    if host not in ("127.0.0.1", "localhost", "::1") and not options.uvicorn:
        print("note: without TLS (--ssl-keyfile, --ssl-certfile) passwords travel in plain text")
    with (
        listen(host, options.port) as taken,
        open_home(shared.home.expanduser()) as home,
        _databases(home, host, shared) as server,
    ):
        port = taken.getsockname()[1]
        names = [name.strip() for name in (shared.allowed_hosts or "").split(",") if name.strip()]
        name = names[0].partition(":")[0] if names else ""
        name = name if name and "*" not in name else _reachable(host)
        here = _address(name, port, options.uvicorn)
        storage = server.set(drivername="postgresql", database=STUDIES)
        if not shared.postgres:
            storage = storage.set(host=name, username=STUDIES)

        def when_ready() -> None:
            lines = home.write_user_files(here, storage, with_password=not shared.postgres)
            print(f"MLflow is ready at {here} (Ctrl-C stops it)")
            if home.is_new:
                print("its users export, shown this once:\n")
                print("\n".join(lines), end="\n\n")
            print(f"what users export stands in {home.folder / 'users.env'}", flush=True)

        served = replace(
            options,
            database=_render(server, MLFLOW),
            artifacts=home.folder / "artifacts",
            environment=home.environment(
                _render(server, AUTH), *allowed(names or names_of(host), port)
            ),
            with_passwords=True,
        )
        serve(served, taken, when_ready)


@contextmanager
def _databases(home: Home, host: str, shared: Shared) -> Iterator[URL]:
    """The PostgreSQL of a shared server while the body runs: its address, as MLflow's role."""
    if shared.postgres:
        server = existing_server(shared.postgres)
        ensure_databases(server)
        yield server
        return
    place = home.place(host, shared.postgres_port)
    os.environ["PGPASSFILE"] = str(home.write_passfile(place.port))
    with running(place, home.secrets.superuser, home.databases()):
        yield URL.create("postgresql+psycopg", MLFLOW, host="127.0.0.1", port=place.port)


def _render(server: URL, database: str) -> str:
    return server.set(database=database).render_as_string(hide_password=False)


def _reachable(host: str) -> str:
    return socket.getfqdn() if host in ("0.0.0.0", "::") else host


def _address(host: str, port: int, uvicorn: Mapping[str, Any]) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if uvicorn else 'http'}://{shown}:{port}"


@dataclass(frozen=True)
class _Saved:
    """The databases that are saved and put back: two SQLite files, or a shared server's."""

    shared: Shared | None
    database: str
    storage: str

    def save(self, target: Path) -> str:
        """Save both databases, MLflow's and that of the studies, while they are used or not."""
        if self.shared:
            with _all_databases(self.shared) as urls:
                saved = back_up_databases(urls, target)
        else:
            saved = back_up_files(self._files(), target)
        return f"{target}: {', '.join(saved)}; uploaded files are no part of it"

    def put_back(self, source: Path) -> str:
        """Put both databases back as `backup` found them; a shared server must be stopped."""
        if self.shared:
            with _all_databases(self.shared, alone=True) as urls:
                back = restore_databases(source, urls)
        else:
            back = restore_files(source, self._files())
        return f"restored {', '.join(back)} from {source}"

    def _files(self) -> dict[str, Path]:
        files = {}
        for name, url in ((MLFLOW, self.database), (STUDIES, self.storage)):
            file = sqlite_file(url)
            if file is None:
                raise UserError(
                    f"without --shared databases are SQLite files, but got {redact(url)}"
                )
            files[name] = file
        return files


def _add_command(name: str, act: Callable[[_Saved, Path], str]) -> None:
    def command(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive (tar).")],
        shared: Annotated[
            bool, typer.Option("--shared", help="The databases of a shared server.")
        ] = False,
        home: HomeFolder = HOME,
        postgres: Postgres = None,
        postgres_port: PostgresPort = POSTGRES_PORT,
        database: Annotated[str, typer.Option(help="MLflow's, without --shared.")] = MLFLOW_FILE,
        storage: Annotated[
            str,
            typer.Option(envvar="LZSWEEP_STORAGE", help="That of the studies, without --shared."),
        ] = STUDIES_FILE,
    ) -> None:
        options = Shared(home, postgres, postgres_port) if shared else None
        print(act(_Saved(options, database, storage), file))

    examples = f"lzsweep serve {name} monday.tar   |   lzsweep serve {name} x.tar --shared"
    serve_app.command(name, help=act.__doc__, epilog=f"Examples:  {examples}")(command)


_add_command("backup", _Saved.save)
_add_command("restore", _Saved.put_back)


@contextmanager
def _all_databases(shared: Shared, *, alone: bool = False) -> Iterator[dict[str, str]]:
    """The addresses of a shared server's databases; ours is started where it does not run."""
    home = shared.home.expanduser()
    if not (home / "secrets.json").exists() and not shared.postgres:
        raise UserError(f"a shared server's folder must exist, but {home} is none; set --home")
    is_served = not shared.postgres and is_open(home)
    if is_served and alone:
        raise UserError(f"the server of {home} must be stopped first, but it runs")
    if is_served:
        os.environ["PGPASSFILE"] = str(home / "pgpass")
        own = URL.create("postgresql+psycopg", MLFLOW, host="127.0.0.1", port=shared.postgres_port)
        yield _owned(own)
    elif shared.postgres:
        server = existing_server(shared.postgres)
        ensure_databases(server)
        yield {name: _render(server, name) for name in (MLFLOW, AUTH, STUDIES)}
    else:
        with open_home(home) as opened, _databases(opened, "127.0.0.1", shared) as server:
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

"""`serve`: the central server, on this machine or for a group."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

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
    without_port,
)
from lzsweep.tracking.tls import PASSWORD, Tls

HOME = Path("~/.local/share/lzsweep/server")
PORT = 5000
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

    @property
    def folder(self) -> Path:
        return self.home.expanduser()


@serve_app.callback()
def serve_command(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for all, with --shared.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = PORT,
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
        Path | None,
        typer.Option(help=f"TLS, as uvicorn has it: the private key, its password in {PASSWORD}."),
    ] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="TLS: the certificate.")] = None,
    ssl_ca_certs: Annotated[
        Path | None,
        typer.Option(help="TLS: clients must have a certificate, signed by one of these."),
    ] = None,
    ssl_cert_reqs: Annotated[
        int | None,
        typer.Option(
            min=0, max=2, help="TLS: whether they must, as in Python's ssl: 2 yes, 0 no."
        ),
    ] = None,
    ssl_version: Annotated[
        int | None, typer.Option(help="TLS: the protocol, a number of Python's ssl.")
    ] = None,
    ssl_ciphers: Annotated[str | None, typer.Option(help="TLS: as OpenSSL lists them.")] = None,
) -> None:
    """Serve the runs recorded in this folder to this machine, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    if max_upload_gb <= 0:
        raise UserError(f"--max-upload-gb must be above 0, but got {max_upload_gb}")
    tls = Tls(ssl_keyfile, ssl_certfile, ssl_ca_certs, ssl_cert_reqs, ssl_version, ssl_ciphers)
    options = ServerOptions(
        database,
        artifacts,
        host,
        port,
        tls=tls.open_context(),
        max_upload_bytes=int(max_upload_gb * 1e9),
    )
    if shared:
        _serve_shared(options, Shared(home, postgres, postgres_port, allowed_hosts))
    else:
        _serve_here(options)
    print("stopped")


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
    file = sqlite_file(options.database)
    is_new = file is not None and not file.exists()
    with listen(options.host, options.port) as taken:
        here = _address(options.host, taken.getsockname()[1], options.tls)
        print(f"opening {options.database} ...", flush=True)

        def when_ready() -> None:
            if is_new:
                print(f"note: {file} is new and empty; what was trained elsewhere has its own")
            print(f"MLflow is ready at {here} (Ctrl-C stops it)")
            print(f"log to it: export MLFLOW_TRACKING_URI={here}", flush=True)

        serve(options, taken, when_ready)


def _serve_shared(options: ServerOptions, shared: Shared) -> None:
    host = options.host
    if host not in ("127.0.0.1", "localhost", "::1") and options.tls is None:
        print("note: without TLS (--ssl-keyfile, --ssl-certfile) passwords travel in plain text")
    with (
        listen(host, options.port) as taken,
        open_home(shared.folder) as home,
        _databases(shared, host, home) as server,
    ):
        port = taken.getsockname()[1]
        names = [name.strip() for name in (shared.allowed_hosts or "").split(",") if name.strip()]
        name = without_port(names[0]) if names else ""
        name = name if name and "*" not in name else _reachable(host)
        here = _address(name, port, options.tls)
        storage = _storage(server, shared).set(drivername="postgresql")
        if not shared.postgres:
            storage = storage.set(host=name)

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
def _databases(shared: Shared, host: str, home: Home | None) -> Iterator[URL]:
    """The PostgreSQL of a shared server while the body runs: its address, as MLflow's role.

    Args:
        shared: which one.
        host: address that its own one listens at.
        home: where its own one is started; None where it runs.
    """
    if shared.postgres:
        server = existing_server(shared.postgres)
        ensure_databases(server)
        yield server
        return
    port = shared.postgres_port
    own = URL.create("postgresql+psycopg", MLFLOW, host="127.0.0.1", port=port)
    if home is None:
        os.environ["PGPASSFILE"] = str(shared.folder / "pgpass")
        yield own
        return
    os.environ["PGPASSFILE"] = str(home.write_passfile(port))
    with running(home.place(host, port), home.secrets.superuser, home.databases()):
        yield own


def _storage(server: URL, shared: Shared) -> URL:
    """The study database; in our own PostgreSQL it has a role that may come from elsewhere."""
    studies = server.set(database=STUDIES)
    return studies if shared.postgres else studies.set(username=STUDIES)


def _render(server: URL, database: str) -> str:
    return server.set(database=database).render_as_string(hide_password=False)


def _reachable(host: str) -> str:
    return socket.getfqdn() if host in ("0.0.0.0", "::") else host


def _address(host: str, port: int, tls: ssl.SSLContext | None) -> str:
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{'http' if tls is None else 'https'}://{shown}:{port}"


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
    folder = shared.folder
    if not (folder / "secrets.json").exists() and not shared.postgres:
        raise UserError(f"a shared server's folder must exist, but {folder} is none; set --home")
    is_served = not shared.postgres and is_open(folder)
    if is_served and alone:
        raise UserError(f"the server of {folder} must be stopped first, but it runs")
    is_started_here = not shared.postgres and not is_served
    with (
        open_home(folder) if is_started_here else nullcontext() as home,
        _databases(shared, "127.0.0.1", home) as server,
    ):
        urls = {name: _render(server, name) for name in (MLFLOW, AUTH)}
        yield {**urls, STUDIES: _render(_storage(server, shared), STUDIES)}


@serve_app.command(
    epilog="Examples:  lzsweep serve health   |   lzsweep serve health --port 5001   |  "
    " lzsweep serve health http://lab:5000"
)
def health(
    uri: Annotated[
        str | None,
        typer.Argument(help="The server's address; else MLFLOW_TRACKING_URI, else --port."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help=f"Port of a server on this machine; {PORT} by default.")
    ] = None,
) -> None:
    """Ask a server whether it answers and lets us in; exit code 2 if not."""
    if uri is not None and port is not None:
        raise UserError(
            f"a server is asked by its address or by its port here, but got {redact(uri)} and"
            f" --port {port}; leave one out"
        )
    here = f"http://127.0.0.1:{PORT if port is None else port}"
    if uri is None and port is None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
    asked = uri or here
    check_server(asked)
    print(f"{redact(asked)} answers")

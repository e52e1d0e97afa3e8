"""`data import|info|export-chunks|fetch`: games and chunks, in, out and looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from yaml import YAMLError

from lzsweep.commands import Format, Output, app, print_json
from lzsweep.config import Data
from lzsweep.errors import DataError, UserError
from lzsweep.go.chunks import write_chunks
from lzsweep.go.fetch import fetch as fetch_file
from lzsweep.train.build import ensure_store, find_store
from lzsweep.train.pieces import game_records
from lzsweep.train.store import Store, StoreVersionError

data_app = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Look after the games."
)
app.add_typer(data_app, name="data")

CHUNK_PREFIX = "games"


class Kind(StrEnum):
    """What the files hold."""

    sgf = "sgf"
    chunks = "chunks"


class Form(StrEnum):
    """Leela Zero's two chunk formats."""

    text = "text"
    binary = "binary"


KindOption = Annotated[Kind, typer.Option("--kind", help="What the files hold.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse games that leelaz cuts short or mislabels.")
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Take only some games: min_moves=50, min_rank=6d, komi=[5.5,7.5],"
        " dates=[2008,2010-06], handicap=[0,0]. May be given several times.",
    ),
]
Cache = Annotated[
    Path, typer.Option("--cache-dir", envvar="LZSWEEP_CACHE", help="Folder of the stores.")
]
CACHE = Path("~/.cache/lzsweep")
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...", help="Files, archives, folders or globs; a .store; or `bundled`."
    ),
]


@data_app.command(
    "import",
    epilog="Examples:  lzsweep data import games/ archive.zip --filter min_rank=6d   |   "
    "lzsweep data import chunks/ --kind chunks",
)
def import_command(
    paths: Paths,
    kind: KindOption = Kind.sgf,
    strict: Strict = False,
    filter: Filters = None,
    cache_dir: Cache = CACHE,
    format: Output = Format.table,
) -> None:
    """Turn games into the store that trainings read, and tell what was left out and why."""
    path = _import(paths, cache_dir, kind=kind, strict=strict, filter=_limits(filter))
    _show(describe(Store.open(path)), format)


@data_app.command(
    epilog="Examples:  lzsweep data info   |   lzsweep data info games/ --format json"
)
def info(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH...]", help="As it was imported, or a .store; else all."),
    ] = None,
    kind: KindOption = Kind.sgf,
    strict: Strict = False,
    filter: Filters = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check all checksums.")] = False,
    cache_dir: Cache = CACHE,
    format: Output = Format.table,
) -> None:
    """Describe the store of some games, or list all stores."""
    if not paths:
        _list_stores(cache_dir.expanduser(), verify, format)
        return
    chosen: dict[str, Any] = {"kind": kind.value, "strict": strict, "filter": _limits(filter)}
    path = find_store(_given(paths), cache_dir, **chosen)
    if not path.exists():
        raise UserError(
            f"games must be imported to be described, but {', '.join(paths)} never was with these"
            f" options: lzsweep data import {' '.join(paths)}"
        )
    _show(describe(Store.open(path, verify=verify), verified=verify), format)


@data_app.command(
    "export-chunks",
    epilog="Examples:  lzsweep data export-chunks games/ -o chunks/   |   "
    "lzsweep data export-chunks bundled -o chunks/ --format binary",
)
def export_chunks(
    games: Paths,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the chunks.")],
    form: Annotated[
        Form, typer.Option("--format", help="Text as leelaz writes it, or binary.")
    ] = Form.text,
    kind: KindOption = Kind.sgf,
    strict: Strict = False,
    filter: Filters = None,
    cache_dir: Cache = CACHE,
) -> None:
    """Write games as Leela Zero's training chunks, for the original tools to read."""
    if found := next(output.glob(f"{CHUNK_PREFIX}.*.gz"), None):
        raise UserError(
            f"the folder must hold no chunks yet, or old and new would mix, but {found} is there:"
            " name another one or delete them"
        )
    path = _import(games, cache_dir, kind=kind, strict=strict, filter=_limits(filter))
    store = Store.open(path)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"chunks must go to a folder, but {output}: {e.strerror}") from e
    with _progress(BarColumn(), TimeElapsedColumn()) as progress:
        records = (game_records(store, game) for game in range(store.n_games))
        written = write_chunks(
            output / CHUNK_PREFIX,
            progress.track(records, total=store.n_games, description="writing"),
            form=form.value,
        )
    print(f"{store.n_positions} positions of {store.n_games} games in {len(written)} chunks")
    print(f"{written[0].name} .. {written[-1].name} in {output}")


@data_app.command(
    epilog="Examples:  lzsweep data fetch https://example.org/kgs-2019.zip -o games/   |   "
    "lzsweep data fetch https://example.org/a.tar.gz --sha256 $(cat a.sha256)"
)
def fetch(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Archives to download.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for them.")] = Path(),
    sha256: Annotated[
        list[str] | None,
        typer.Option("--sha256", metavar="HEX", help="What a file must be: one for each URL."),
    ] = None,
) -> None:
    """Download archives of games; what was interrupted goes on where it stopped."""
    if sha256 and len(sha256) != len(urls):
        raise UserError(
            f"--sha256 must be given once for each URL, but got {len(sha256)} for {len(urls)}"
        )
    for i, url in enumerate(urls):
        with _progress(BarColumn(), DownloadColumn(), TransferSpeedColumn()) as progress:
            task = progress.add_task(url.rpartition("/")[2], total=None)
            fetched = fetch_file(
                url,
                output,
                sha256=sha256[i] if sha256 else None,
                progress=_teller(progress, task),
            )
        print(f"{fetched.path}  {fetched.n_bytes} bytes  sha256 {fetched.sha256}")


def describe(store: Store, *, verified: bool = False) -> dict[str, Any]:
    """A store as plain data; the splits as the default fractions make them."""
    n_bytes = store.path.stat().st_size
    games = store.assign_games(Data.val_fraction, Data.test_fraction)
    return {
        "store": str(store.path),
        "source": store.info["source"],
        "created_by": store.info["created_by"],
        "games": store.n_games,
        "positions": store.n_positions,
        "policies": "moves" if store.policy_moves is None else "distributions",
        "splits": {
            name: {"games": len(part), "positions": len(store.positions_of(part))}
            for name, part in games.items()
        },
        "bytes": n_bytes,
        "bytes_per_position": round(n_bytes / store.n_positions, 1),
        "dropped": store.info["drops"],
        "examples": store.info["examples"],
        **({"verified": True} if verified else {}),
    }


def _given(paths: list[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else paths


def _limits(filters: list[str] | None) -> dict[str, Any]:
    for text in filters or ():
        if "=" not in text:
            raise UserError(f"--filter takes KEY=VALUE, but got {text!r}")
    try:
        given = OmegaConf.from_dotlist(filters or [])
    except YAMLError as error:
        raise UserError(
            f"--filter takes KEY=VALUE, a list in brackets, but got {' '.join(filters or ())!r}"
        ) from error
    limits = OmegaConf.to_container(given)
    assert isinstance(limits, dict)
    return {str(key): value for key, value in limits.items()}


def _import(paths: list[str], cache_dir: Path, *, kind: Kind, **chosen: Any) -> Path:
    with _progress(TimeElapsedColumn()) as progress:
        task = progress.add_task("reading", total=None)

        def tell(n_games: int, n_positions: int) -> None:
            text = f"{n_games} games, {n_positions} positions"
            progress.update(task, description=text)

        return ensure_store(_given(paths), cache_dir, tell, kind=kind.value, **chosen)


@contextmanager
def _progress(*columns: Any) -> Iterator[Progress]:
    console = Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    with Progress(
        SpinnerColumn(),
        text,
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield progress


def _teller(progress: Progress, task: Any) -> Callable[[int, int | None], None]:
    return lambda n_bytes, n_total: progress.update(task, completed=n_bytes, total=n_total)


def _show(description: dict[str, Any], format: Format) -> None:
    if format is Format.json:
        print_json(description)
        return
    for key in ("store", "source", "games", "positions", "policies"):
        print(f"{key:10} {description[key]}")
    splits = [
        f"{name} {part['games']} games, {part['positions']} positions"
        for name, part in description["splits"].items()
    ]
    print(f"{'splits':10} {'; '.join(splits)}")
    per_position = f"{description['bytes_per_position']} a position"
    print(f"{'bytes':10} {description['bytes']}, {per_position}")
    if description.get("verified"):
        print(f"{'checksums':10} all right")
    dropped = description["dropped"]
    print(f"{'dropped':10} {sum(dropped.values())}")
    for reason, n in sorted(dropped.items(), key=lambda item: -item[1]):
        print(f"{n:10} {reason}: {description['examples'].get(reason, '')}")


def _list_stores(cache: Path, verify: bool, format: Format) -> None:
    described = []
    for path in sorted(cache.glob("*.store")):
        try:
            described.append(describe(Store.open(path, verify=verify), verified=verify))
        except DataError as e:
            state = e.age if isinstance(e, StoreVersionError) else "damaged"
            described.append({"store": str(path), "unusable": state, "reason": str(e)})
    if format is Format.json:
        print_json(described)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("games", "positions", "bytes", "source", "store"):
        text = column in ("source", "store")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for row in described:
        name = Path(row["store"]).name
        counts = [str(row.get(key, "")) for key in ("games", "positions", "bytes")]
        table.add_row(*counts, row.get("source") or row["unusable"], name)
    console = Console(markup=False, highlight=False)
    console = console if console.is_terminal else Console(markup=False, width=300)
    console.print(table)
    for row in described:
        if "unusable" in row:
            print(row["reason"])
    print(f"{len(described)} stores in {cache}")

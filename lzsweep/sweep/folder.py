"""The folder of a study: whose it is, the config trees frozen in it, what is written into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lzsweep.errors import UserError
from lzsweep.tracking.journal import JOURNAL_NAME

FROZEN = "conf"
_SKIPPED = {"multirun", "outputs", "mlruns", "mlartifacts", "node_modules", "__pycache__"}


def name_problems(name: str | None) -> list[str]:
    """What is wrong with the name of a study, which is a folder below `multirun`, too."""
    if name is None or all(part not in ("", ".", "..") for part in name.split("/")):
        return []
    return [
        "study.name must be a name, which may be one in a group as team/demo, but got"
        f" {name!r}; set hydra.sweep.dir for a folder elsewhere"
    ]


def take_folder(folder: Path, sources: Sequence[str] = ()) -> None:
    """Make the folder of a new study and see that it is writable and nobody else's.

    Args:
        folder: the study's.
        sources: where configs are found, which it may not replace by its copies.

    Raises:
        UserError: it cannot be written, or somebody else's files are in it.
    """
    trees = [Path(s.removeprefix("file://")) for s in sources if s.startswith("file://")]
    for place in (Path.cwd(), *trees):
        if place.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"a new study needs a folder of its own, but {folder} holds {place}; choose"
                " another study.name or hydra.sweep.dir"
            )
    for above in (folder, *folder.parents):
        is_inside = above != folder and (above / FROZEN / "0").is_dir()
        if is_inside or (above / JOURNAL_NAME).exists():
            raise UserError(
                f"a new study needs a folder of its own, but {above} is that of another study or"
                " training; move it away or choose another study.name"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"the study's folder must be writable, but {folder} is not: {error.strerror};"
            " change to another folder or set hydra.sweep.dir"
        ) from error
    # Of a command that died before there was a study it would be replaced.
    copies = folder / FROZEN
    if copies.exists() and not all(p.name.isdigit() for p in copies.iterdir()):
        raise UserError(
            f"a new study keeps its configs in {copies}, but somebody else's are there; move them"
            " away or choose another study.name"
        )
    # A new study would resume from whatever checkpoints lie there.
    if trials := sorted(p.name for p in folder.iterdir() if p.name.isdigit()):
        raise UserError(
            f"a new study needs a folder of its own, but {folder} holds trials of another one"
            f" ({', '.join(trials[:5])}), which its database no longer knows; move it away or"
            " choose another study.name"
        )


def freeze(sources: Sequence[str], folder: Path) -> None:
    """Copy config trees into a study's folder; workers compose from there alone.

    Args:
        sources: where configs are found, first match first (`file://...`, `pkg://...`).
        folder: the study's.
    """
    target = folder / FROZEN
    aside = folder / f".{FROZEN}-{os.getpid()}"
    try:
        for n, source in enumerate(sources):
            if source.startswith("file://"):
                tree = Path(source.removeprefix("file://"))
                shutil.copytree(tree, aside / str(n), ignore=_but_configs)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_frozen(conf: Sequence[str]) -> None:
    """See that the configs of a study that goes on are where they were frozen.

    Args:
        conf: what `frozen` gave.

    Raises:
        UserError: they are not there.
    """
    for folder in (Path(c.removeprefix("file://")) for c in conf if c.startswith("file://")):
        if not folder.is_dir():
            raise UserError(
                f"a study goes on from the configs that were frozen when it began, but {folder} is"
                " gone, or on another machine; bring the study's folder back, or choose another"
                " study.name"
            )


def frozen(sources: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The sources with the copies that `freeze` makes in the place of the files."""
    return tuple(
        f"file://{folder / FROZEN / str(n)}" if source.startswith("file://") else source
        for n, source in enumerate(sources)
    )


def _but_configs(directory: str, names: list[str]) -> set[str]:
    # A user's own --config-dir may be a whole working folder, this study's in it.
    skipped = set()
    for name in names:
        path = Path(directory, name)
        is_config = path.suffix in (".yaml", ".yml")
        is_tree = path.is_dir() and name not in _SKIPPED and not (path / "journal.jsonl").exists()
        if name.startswith(".") or not (is_config or is_tree):
            skipped.add(name)
    return skipped

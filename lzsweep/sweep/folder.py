"""The folder of a study: whose it is, the config trees frozen in it, what is written into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lzsweep.errors import UserError

FROZEN = "conf"
_SKIPPED = {"multirun", "outputs", "mlruns", "mlartifacts", "node_modules", "__pycache__"}


def take_folder(folder: Path) -> None:
    """Make the folder of a new study and see that it is writable and nobody else's.

    Raises:
        UserError: it cannot be written, or holds the trials of another study.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"the study's folder must be writable, but {folder} is not: {error.strerror};"
            " change to another folder or set hydra.sweep.dir"
        ) from error
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

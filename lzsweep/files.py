"""Files that are there whole or not at all, whoever is killed or finds the disk full."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file, whole or not at all; its folder is made.

    Args:
        path: where; what lies there is replaced.
        content: of the file.
        mode: who may read it; nobody else can at any time.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        aside.chmod(mode)
        aside.replace(path)
    except OSError as error:  # a write does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        aside.unlink(missing_ok=True)


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    write_whole(path, text.encode(), 0o600)


def lend_whole(source: Path, target: Path) -> None:
    """Give a file a second name, or where the file system knows no such thing, copy it.

    Raises:
        OSError: there is no room; what lay at the target is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.partial")
    aside.unlink(missing_ok=True)
    try:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)  # of two names of one file, none is replaced

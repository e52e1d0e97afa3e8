"""Imports of others that take seconds, and how to leave out what nobody here asked them for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def stand_in(name: str, module: ModuleType | None) -> Iterator[None]:
    """Put another module in the place of one while others are imported.

    Args:
        name: of the module; where it is imported already, it stays.
        module: what they get; with None the module is as if it was not installed.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module  # type: ignore[assignment]  # None is the import system's own word
    try:
        yield
    finally:
        del sys.modules[name]

"""Modules that stand in for others while something is imported."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from lzsweep.imports import stand_in


def test_a_stand_in_is_there_for_a_while_and_only_where_nothing_was() -> None:
    name = "colorsys"  # a module that nobody here has imported
    sys.modules.pop(name, None)
    fake = ModuleType(name)
    with stand_in(name, fake):
        assert importlib.import_module(name) is fake
    real = importlib.import_module(name)
    assert real is not fake
    with stand_in(name, fake):
        assert importlib.import_module(name) is real
    del sys.modules[name]
    with stand_in(name, None), pytest.raises(ModuleNotFoundError, match=name):
        importlib.import_module(name)
    assert name not in sys.modules

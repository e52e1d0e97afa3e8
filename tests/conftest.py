"""What all tests share: a cache of stores of their own, an empty folder to work in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache of stores a test session, and no settings of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LZSWEEP_CACHE", str(folder))
        for name in ("MLFLOW_TRACKING_URI", "LZSWEEP_STORAGE", "CUDA_VISIBLE_DEVICES"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""The wheel alone works: its configs, ready-made sweeps and games are inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_alone_trains_in_an_empty_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    names = {str(p.relative_to(site)) for p in site.rglob("*") if p.is_file()}
    assert "lzsweep/conf/config.yaml" in names
    assert "lzsweep/conf/sweeps/demo.yaml" in names
    assert "lzsweep/sweep/page.html" in names
    assert "lzsweep/data/gnugo_selfplay.sgf.gz" in names
    assert "lzsweep/py.typed" in names
    assert not any("tests" in name for name in names)
    done = subprocess.run(
        [sys.executable, "-m", "lzsweep", "network=tiny", "trainer=debug", "seed=3"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr  # what a library says of itself at Python's end
    assert "test/policy_top1" in done.stdout
    assert {p.name for p in work.iterdir()} >= {"outputs", "mlflow.db", "mlruns"}

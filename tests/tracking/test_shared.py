"""A shared server's folder and its PostgreSQL, where they end otherwise than they should."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from lzsweep.errors import LzsweepError, UserError
from lzsweep.tracking import postgres
from lzsweep.tracking.shared import is_open, open_home


def test_a_home_is_free_again_whatever_happened_in_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(RuntimeError, match="in the middle") as kept, open_home(home):
        assert is_open(home)
        with pytest.raises(UserError, match="is served by one process"), open_home(home):
            pass
        raise RuntimeError("in the middle")
    assert kept.tb is not None, "which holds all that the body held"
    assert not is_open(home)


def test_a_database_that_does_not_stop_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "STOP_S", 0.2)
    deaf = subprocess.Popen(
        ["sh", "-c", "trap '' INT QUIT; echo; while :; do sleep 1; done"], stdout=subprocess.PIPE
    )
    try:
        assert deaf.stdout and deaf.stdout.readline(), "it has begun not to listen"
        with pytest.raises(LzsweepError, match=f"process {deaf.pid}.* does not stop within 0.4 s"):
            postgres._stop(psutil.Process(deaf.pid))
    finally:
        deaf.kill()
        deaf.wait()


def test_a_postgres_that_is_dead_but_not_buried_is_in_nobodys_way(tmp_path: Path) -> None:
    """Its parent was killed too, and the first process of a machine may take its time."""
    lock = tmp_path / "postmaster.pid"
    with subprocess.Popen(["true"]) as dead:  # nobody asks for its exit code before the end
        process = psutil.Process(dead.pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        with subprocess.Popen(["sleep", "0.5"], cwd=tmp_path) as child:
            lock.write_text(f"{dead.pid}\n")
            postgres._stop_leftover(tmp_path)
            assert child.poll() is not None, "a child of it may still write"
    assert not lock.exists()

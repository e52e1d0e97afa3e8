"""The recorder: what a full disk does not take at once is noted at the end."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lzsweep.tracking.client import connect
from lzsweep.tracking.journal import Journal
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.recorder import Recorder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system of its own, of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64K", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_the_end_of_a_run_waits_for_room_on_the_disk(
    small_disk: Path, sqlite_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    recorder = Recorder(sqlite_uri, "exp", 0)
    recorder.start(small_disk, name="a", params={}, tags={}, config="lr: 0.1")
    journal = small_disk / "journal.jsonl"
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * 2**17)
    # What is left of the journal's last page holds no end with a reason this long.
    recorder.end(small_disk, "FAILED", tags={"lzsweep.reason": "x" * 4096})
    assert "cannot be noted yet" in caplog.text
    assert str(journal) in caplog.text
    (small_disk / "ballast").unlink()
    recorder.close()
    run = connect(sqlite_uri).get_run(run_id_of(small_disk) or "")
    assert run.info.status == "FAILED"
    assert run.data.tags["lzsweep.reason"] == "x" * 4096


@pytest.mark.parametrize("call", ["start", "artifact"])
def test_the_config_is_kept_whenever_its_first_attempt_died(
    call: str, sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("of something else")
    recorder = Recorder(sqlite_uri, "exp", 0)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, call, die)
        with pytest.raises(KeyboardInterrupt):
            recorder.start(folder, name="a", params={}, tags={}, config="lr: 0.1")
    later = "lr: 0.2" if call == "artifact" else "lr: 0.1"
    recorder.start(folder, name="a", params={}, tags={}, config=later)
    recorder.end(folder, "FINISHED")
    recorder.close()
    assert (folder / "config.yaml").read_text() == "lr: 0.1"
    client = connect(sqlite_uri)
    uploaded = client.download_artifacts(run_id_of(folder) or "", "config.yaml", str(tmp_path))
    assert Path(uploaded).read_text() == "lr: 0.1"


def test_what_never_began_is_not_ended(sqlite_uri: str, tmp_path: Path) -> None:
    recorder = Recorder(sqlite_uri, "exp", 0)
    recorder.end(tmp_path / "run", "FAILED", tags={"lzsweep.reason": "no room"})
    recorder.close()
    assert (tmp_path / "run/journal.jsonl").read_text() == ""

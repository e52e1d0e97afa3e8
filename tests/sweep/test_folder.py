"""What is written into a study's folder: whole or not at all, with nothing left over."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lzsweep.sweep.folder import write_whole
from tests.tracking.test_recorder import small_disk  # noqa: F401


def test_a_file_is_replaced_and_all_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    for content in (b"long before", b"now"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_a_full_disk_keeps_the_old_file_and_nothing_of_the_new(
    small_disk: Path,  # noqa: F811
) -> None:
    write_whole(small_disk / "page.html", b"before")
    with pytest.raises(OSError, match="No space left"):
        write_whole(small_disk / "page.html", b"x" * 2**18)
    assert [p.name for p in small_disk.iterdir()] == ["page.html"]
    assert (small_disk / "page.html").read_bytes() == b"before"

"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lzsweep.files import lend_whole, write_secret, write_whole
from tests.tracking.test_recorder import small_disk  # noqa: F401


def test_a_file_is_written_whole_and_who_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        for content in (b"long before", b"all"):
            write_whole(tmp_path / "new" / "page", content)
        write_secret(tmp_path / "new" / "secret", "pw")
    finally:
        os.umask(before)
    assert (tmp_path / "new/page").read_bytes() == b"all"
    assert oct((tmp_path / "new/page").stat().st_mode)[-3:] == "644"
    assert oct((tmp_path / "new/secret").stat().st_mode)[-3:] == "600"


def test_what_cannot_be_written_says_where_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    with pytest.raises(IsADirectoryError, match="page"):
        write_whole(tmp_path / "page", b"all")
    assert [p.name for p in tmp_path.iterdir()] == ["page"]


def test_a_full_disk_keeps_the_old_file_and_nothing_of_the_new(
    small_disk: Path,  # noqa: F811
) -> None:
    write_whole(small_disk / "page.html", b"before")
    with pytest.raises(OSError, match=r"No space left on device: .*page\.html"):
        write_whole(small_disk / "page.html", b"x" * 2**18)
    assert [p.name for p in small_disk.iterdir()] == ["page.html"]
    assert (small_disk / "page.html").read_bytes() == b"before"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_is_lent_however_often(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a file system without second names")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "source").write_text("best")
    for _ in range(2):
        lend_whole(tmp_path / "source", tmp_path / "to" / "target")
    assert [(p.name, p.read_text()) for p in (tmp_path / "to").iterdir()] == [("target", "best")]

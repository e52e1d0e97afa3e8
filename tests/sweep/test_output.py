"""A trial's log: bounded however much is printed, with its beginning and its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lzsweep.sweep import output


def test_a_long_log_keeps_its_beginning_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MAX_BYTES": 4000, "HEAD_BYTES": 500, "TAIL_BYTES": 1000}.items():
        monkeypatch.setattr(output, name, value)
    log = tmp_path / "trial.log"
    writer = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for n in range(2000):
        os.write(writer, b"line %d\n" % n)
        output.bound_log(log)
        assert log.stat().st_size <= 4000
    output.bound_log(log)
    os.write(writer, b"the end\n")
    text = log.read_text()
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 1998\nline 1999\nthe end\n")
    assert text.count("cut by lzsweep") >= 1
    os.close(writer)


def test_the_end_of_a_log_is_read_and_no_more(tmp_path: Path) -> None:
    log = tmp_path / "trial.log"
    assert output.last_lines(log, 3) == []
    log.write_bytes(b"x" * 2**20 + b"\nline 1\n\xff\nline 3")
    assert output.last_lines(log, 3) == ["line 1", "\ufffd", "line 3"]
    assert output.last_lines(log, 9, n_bytes=8) == ["\ufffd", "line 3"]


def test_a_short_or_missing_log_stays_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "trial.log"
    output.bound_log(log)
    assert not log.exists()
    log.write_text("all of it")
    output.bound_log(log)
    assert log.read_text() == "all of it"

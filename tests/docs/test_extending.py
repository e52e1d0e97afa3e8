"""The worked example of a model of the reader's own, as its page prints it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import commands_of, read_page
from tests.go.engine import PROJECT
from tests.sweep.conftest import Cli, cli

__all__ = ["cli"]


@pytest.mark.slow
def test_a_model_of_the_readers_own_is_swept(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in read_page(PROJECT / "docs/extending.md").files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(body)
    path, sweep, best, report = (c.words[1:] for c in commands_of("own model"))
    assert path == ("PYTHONPATH=.",)
    monkeypatch.syspath_prepend(str(work))  # this process has read the variable long ago
    code, out, err = cli(*sweep)
    assert code == 0, err
    assert "3 of 3 trials finished" in out
    assert "best: #" in out
    code, out, _ = cli(*best)
    assert code == 0
    right = float(re.findall(r"0\.\d{4}", out)[-1])
    assert right > 0.5
    code, out, _ = cli(*report)
    assert code == 0
    assert (work / out.strip()).exists()

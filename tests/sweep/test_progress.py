"""`lzsweep watch` and the progress of a sweep, while the database answers and while not."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from rich.console import Console
from sqlalchemy.exc import OperationalError

from lzsweep.commands import study as commands
from lzsweep.sweep.progress import show_progress
from lzsweep.sweep.storage import patiently
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.study import Study
from tests.sweep.conftest import Cli
from tests.sweep.test_study import make_study, must_claim

URL = "sqlite:///lzsweep.db"
GONE = OperationalError("SELECT 1", {}, Exception("the connection was refused"))


def train_the_rest(study: Study, shown: threading.Event) -> threading.Thread:
    """Complete what the study still wants, once somebody looks."""

    def work() -> None:
        assert shown.wait(60)
        own = open_study(URL, study.name)
        own.set_deciders(RandomSampler(seed=2), NopPruner())
        while claim := own.claim("w"):
            own.tell(claim, "complete", (0.25,))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a watcher has looked at a study for the first time."""
    looked = threading.Event()

    def sleep(seconds: float) -> None:
        looked.set()
        time.sleep(0.05)

    monkeypatch.setattr(commands, "time", SimpleNamespace(sleep=sleep))
    return looked


def test_watch_follows_a_study_to_its_end(cli: Cli, work: Path, shown: threading.Event) -> None:
    study = make_study(URL, n_trials=2)
    study.tell(must_claim(study), "complete", (0.5,))
    thread = train_the_rest(study, shown)
    code, out, err = cli("watch", "s")
    thread.join()
    assert (code, err) == (0, "")
    line = out.splitlines()[-1]
    assert line.startswith("#1 complete: x=")
    assert "loss=0.25" in line
    assert line.endswith("[2/2]")
    assert cli("watch", "s") == (0, "", ""), "of what is over there is nothing to tell"


def test_watch_shows_a_live_table_in_a_terminal(
    cli: Cli, work: Path, shown: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, height=30)
    monkeypatch.setattr(commands, "make_console", lambda: terminal)
    thread = train_the_rest(make_study(URL, n_trials=2), shown)
    assert cli("watch", "s")[0] == 0
    thread.join()
    assert "2/2" in screen.getvalue()
    assert "best: #" in screen.getvalue()
    assert "loss=0.25" in screen.getvalue()


def test_watch_ends_at_a_stopped_study(cli: Cli, work: Path) -> None:
    make_study(URL).stop("by somebody")
    assert cli("watch", "s")[0] == 0


def test_a_database_that_is_away_does_not_hide_what_went_wrong(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(URL)
    with (
        pytest.raises(RuntimeError, match="the real reason"),
        show_progress(study, Console(file=io.StringIO())),
    ):
        monkeypatch.setattr(Study, "trials", _lost)
        raise RuntimeError("the real reason")


def test_a_lost_database_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [GONE, 7]

    def ask() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(ask) == 7
    assert (
        "the study database does not answer: (builtins.Exception) the connection was refused"
        in caplog.text
    )


def test_a_lost_database_is_one_line(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study(URL)
    monkeypatch.setattr(Study, "trials", _lost)
    code, _, err = cli("status", "s")
    assert code == 1
    assert err.startswith("lzsweep: the study database must answer, but says: ")
    assert len(err.splitlines()) == 1
    assert "connection was refused" in err


def _lost(self: Study) -> Any:
    raise GONE

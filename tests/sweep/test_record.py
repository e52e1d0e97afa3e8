"""The record of a study: which MLflow server it is on, whoever asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lzsweep.errors import UserError
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.studies import create_study
from lzsweep.tracking.client import connect
from lzsweep.tracking.delivery import deliver
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.runs import begin_parent
from tests.sweep.conftest import Cli
from tests.sweep.test_study import make_record
from tests.tracking.conftest import sqlite_uri  # noqa: F401

HIDDEN = replace(make_record(), tracking_uri="http://***@lab:5000", is_recorded=True)


def test_a_study_stays_on_its_server_whatever_is_given() -> None:
    record = replace(make_record(), tracking_uri="http://lab:5000", is_recorded=True)
    assert record.server("http://other:5000") == "http://lab:5000"


@pytest.mark.parametrize("given", ["http://me:pw@lab:5000", "http://lab:5000/"])
def test_a_password_that_is_not_recorded_is_taken_from_who_asks(given: str) -> None:
    assert HIDDEN.server(given) == given


def test_another_server_than_the_studys_is_refused() -> None:
    for given in ("sqlite:///mlflow.db", "http://me:secret@other:5000"):
        with pytest.raises(UserError, match=r"logs to http://.*@lab:5000") as caught:
            HIDDEN.server(given)
        assert "secret" not in str(caught.value)
    assert (
        replace(HIDDEN, is_recorded=False).server("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
    )


def test_stop_tells_the_server_of_the_study(
    cli: Cli,
    work: Path,
    sqlite_uri: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(work / "s")
    record = replace(make_record(), folder=folder, tracking_uri=sqlite_uri, is_recorded=True)
    study, _ = create_study("sqlite:///lzsweep.db", "s", record, Budget(3))
    study.add_jobs(["7"])
    begin_parent(folder, experiment="e", study="s")
    deliver(folder, sqlite_uri)
    run_id = run_id_of(folder) or ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work}/other.db")
    monkeypatch.setattr("lzsweep.commands.study.cancel_pending", lambda ids: None)
    monkeypatch.setattr("lzsweep.commands.study.queue", lambda ids: {})
    monkeypatch.setattr("lzsweep.sweep.finish.write_report_aside", lambda *_: False)
    code, _, err = cli("stop", "s")
    assert code == 0, err
    assert connect(sqlite_uri).get_run(run_id).info.status == "KILLED"
    assert not (work / "other.db").exists()

"""Studies of a database: created once, joined by the same sweep alone, found by name."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial

from lzsweep.errors import UserError
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.studies import create_study, list_studies, open_study
from tests.sweep.test_study import in_fork, make_record, make_study


def test_another_space_under_the_same_name_is_refused(url: str) -> None:
    make_study(url)
    with pytest.raises(UserError, match=r"'s' differs from this command: lr is 0.1, here 0.2;"):
        create_study(url, "s", make_record("0.2"), Budget(3))


def test_an_unknown_study_names_the_known_ones(url: str) -> None:
    make_study(url, name="known")
    with pytest.raises(UserError, match="has no study 'other'; studies there: known"):
        open_study(url, "other")


def test_a_study_of_another_program_is_none_of_ours(url: str) -> None:
    make_study(url, name="known")
    optuna.create_study(study_name="theirs", storage=url).add_trial(create_trial(value=1.0))
    with pytest.raises(UserError, match="has no study 'theirs'; studies there: known"):
        open_study(url, "theirs")
    with pytest.raises(UserError, match="one of another program that is named 'theirs'"):
        make_study(url, name="theirs")


def test_of_several_creators_one_prepares(url: str) -> None:
    prepared = []
    for _ in range(2):
        create_study(url, "s", make_record(), Budget(1), prepare=lambda: prepared.append(1))
    assert prepared == [1]

    def refuse() -> None:
        raise UserError("the folder is another's")

    with pytest.raises(UserError, match="the folder is another's"):
        create_study(url, "t", make_record(), Budget(1), prepare=refuse)
    assert [s.name for s in list_studies(url)] == ["s"]


@pytest.mark.parametrize("n_written", range(3))
def test_whoever_dies_while_creating_a_study_leaves_none(
    url: str, n_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1] * n_written

    def set_or_die(self: optuna.Study, key: str, value: Any) -> None:
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left.pop()
        self._storage.set_study_user_attr(self._study_id, key, value)

    def create_and_die() -> None:
        monkeypatch.setattr(optuna.Study, "set_user_attr", set_or_die)
        make_study(url)

    assert in_fork(create_and_die) == -signal.SIGKILL
    assert list_studies(url) == []
    study, is_new = create_study(url, "s", make_record(), Budget(2))
    assert is_new
    assert study.budget == Budget(2)
    assert study.claim("w") is not None


def test_a_command_that_is_refused_changes_nothing(url: str) -> None:
    make_study(url, n_trials=3).stop("by `lzsweep stop`")
    elsewhere = replace(make_record(), tracking_uri="http://elsewhere")
    with pytest.raises(UserError, match="a study keeps its MLflow server, but 's' logs to "):
        create_study(url, "s", elsewhere, Budget(9), given=["n_trials"])
    study = open_study(url, "s")
    assert study.stopped() == "by `lzsweep stop`"
    assert study.n_trials == 3

"""Whose folder it is: a new study takes nobody's, one that goes on has its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lzsweep.errors import UserError
from lzsweep.sweep.folder import FROZEN, freeze, name_problems, take_folder
from lzsweep.tracking.journal import JOURNAL_NAME
from tests.sweep.conftest import FAULTY, Cli


@pytest.mark.parametrize("name", ["..", ".", "../x", "/tmp/x", "a//b", "a/../b", ""])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    (problem,) = name_problems(name)
    assert f"but got {name!r}" in problem


def test_a_name_may_be_any_other(work: Path) -> None:
    names = (None, "demo", "team/demo", "größe 🙂", "...")
    assert [problem for name in names for problem in name_problems(name)] == []


def test_a_folder_with_something_of_the_users_is_refused_and_stays(work: Path) -> None:
    (work / "conf/network").mkdir(parents=True)
    (work / "conf/network/mine.yaml").write_text("blocks: 3\n")
    (work / "conf/README.txt").write_text("ours")
    sources = [f"file://{work}/conf", "pkg://lzsweep"]
    for folder in (work, work.parent):
        with pytest.raises(UserError, match=f"a folder of its own, but {folder} holds "):
            take_folder(folder, sources)
    other = work / "other"
    (other / "conf/network").mkdir(parents=True)
    with pytest.raises(UserError, match=r"configs in .*other/conf, but somebody else's are"):
        take_folder(other, sources)
    assert (work / "conf/README.txt").read_text() == "ours"
    for _ in range(2):  # the first command died before there was a study
        take_folder(work / "new", sources)
        freeze(sources, work / "new")
    assert (work / "new" / FROZEN / "0/network/mine.yaml").read_text() == "blocks: 3\n"


def test_a_folder_in_that_of_another_study_is_refused(work: Path) -> None:
    take_folder(work / "multirun/demo")
    (work / "conf").mkdir()
    freeze([f"file://{work}/conf"], work / "multirun/demo")  # it logs to no MLflow
    (work / "run").mkdir()
    (work / "run" / JOURNAL_NAME).touch()
    for folder in ("multirun/demo/3", "run", "run/deep/er"):
        with pytest.raises(UserError, match="is that of another study or training; move it away"):
            take_folder(work / folder)
    take_folder(work / "multirun/team/demo")


@pytest.mark.slow
def test_a_study_whose_folder_is_gone_says_so(cli: Cli, faulty: Path) -> None:
    command = ("-m", *FAULTY, "lr=0.1,0.2", "study.name=a")
    code, _, err = cli(*command, "study.n_trials=1")
    assert code == 0, err
    # Not all of it: this process goes on writing the worker's own log there.
    shutil.move(faulty / "multirun/a/conf", faulty / "elsewhere")
    code, _, err = cli(*command)
    assert code == 2
    assert "configs that were frozen when it began, but" in err
    assert not (faulty / "multirun/a/conf").exists()

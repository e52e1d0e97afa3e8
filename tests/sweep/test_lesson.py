"""`study.warm_start`: a sampler learns from another study, and nobody else notices."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import CmaEsSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial

from lzsweep.errors import UserError
from lzsweep.sweep.lesson import find_lessons, teach
from lzsweep.sweep.space import Parameter, Space
from lzsweep.sweep.study import Study
from tests.sweep.test_study import make_study, must_claim

X = Parameter("x", FloatDistribution(0.0, 1.0), "interval(0,1)", is_interval=True)
N = Parameter("n", IntDistribution(1, 9), "int(interval(1,9))", is_interval=True)
KIND = Parameter("kind", CategoricalDistribution(["a", "b"]), "a,b")
OLD = Space((KIND, X, N))
NEW = Space((KIND, Parameter("x", FloatDistribution(0.0, 0.5), "", owner=("kind", "a")), N))
BOTH = Space((X, N))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def learn(url: str, teacher: str, study: Study) -> tuple[list[FrozenTrial], int]:
    now = datetime.now()
    return find_lessons(url, teacher, now, pupil=study.name, record=study.record)


def finish(url: str, name: str, space: Space, n: int) -> Study:
    """A study that searched for x = 0.2, with some curves and one failure."""
    study = make_study(url, n_trials=n, name=name, space=space)
    while claim := study.claim("w"):
        value = abs(float(claim.trial.params["x"]) - 0.2)
        study.report(claim, 1, value)
        if claim.trial.number == 0:
            study.tell(claim, "infeasible", reason="loss is nan")
        else:
            study.tell(claim, "complete", [value])
    return study


def test_only_what_fits_teaches_and_nothing_of_it_shows(url: str) -> None:
    old = finish(url, "old", OLD, 12)
    study = make_study(url, n_trials=3, name="new", space=NEW)
    lessons, n_skipped = learn(url, "old", study)
    assert len(lessons) + n_skipped == 12
    fitting = [t for t in old.trials() if t.params["kind"] == "a" and float(t.params["x"]) <= 0.5]
    assert len(lessons) == len(fitting) > 0, "kind=b has x, which is none of this space"
    assert {frozenset(t.params) for t in lessons} == {frozenset(["kind", "x@kind=a", "n"])}
    assert study.trials() == []
    assert study.best() == []
    study.set_deciders(TPESampler(seed=1), MedianPruner(n_startup_trials=1), lessons)
    claim = must_claim(study)
    assert claim.trial.number == 0
    assert not study.report(claim, 1, 99.0), "no pruner compares with a lesson"
    study.tell(claim, "complete", [0.3])
    assert [t.number for t in study.best()] == [0]


def test_what_the_new_study_keeps_fixed_may_differ_in_the_old(url: str) -> None:
    old = finish(url, "old", OLD, 12)
    study = make_study(url, name="new", space=Space((X, N), ("kind=b",)))
    lessons, _ = learn(url, "old", study)
    assert len(lessons) == sum(t.params["kind"] == "b" for t in old.trials())


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_a_taught_sampler_begins_where_the_other_ended(url: str, name: str) -> None:
    finish(url, "old", BOTH, 20)
    far = {}
    for taught in (False, True):
        sampler = {
            "tpe": TPESampler(seed=1),
            "gp": GPSampler(seed=1),
            "cmaes": CmaEsSampler(seed=1, warn_independent_sampling=False),
        }[name]
        study = make_study(url, n_trials=5, name=f"new {taught}", space=BOTH)
        lessons = learn(url, "old", study)[0] if taught else []
        teach(sampler, lessons, BOTH)
        study.set_deciders(sampler, NopPruner(), lessons)
        far[taught] = 0.0
        while claim := study.claim("w"):
            error = abs(float(claim.trial.params["x"]) - 0.2)
            far[taught] += error / 5
            study.tell(claim, "complete", [error])
    assert far[True] < far[False]


def test_a_teacher_is_heard_up_to_the_warm_start(url: str) -> None:
    finish(url, "old", BOTH, 3)
    study = make_study(url, name="new", space=BOTH)
    until = datetime.now()
    study.set_teacher("old", until)
    finish(url, "old", BOTH, 5)
    teacher = make_study(url, name="new", space=BOTH).teacher()
    assert teacher == ("old", until)
    assert teacher is not None
    lessons, _ = find_lessons(url, *teacher, pupil="new", record=study.record)
    assert len(lessons) == 3


def test_a_study_that_cannot_teach_is_refused(url: str) -> None:
    study = make_study(url, name="new", space=BOTH)
    with pytest.raises(UserError, match="same database, but there is no 'none' in it"):
        learn(url, "none", study)
    with pytest.raises(UserError, match="another study, but 'new' is this one"):
        learn(url, "new", study)
    finish(url, "far", Space((KIND, X)), 3)
    with pytest.raises(UserError, match="none of the 3 finished trials of 'far' lies in this"):
        learn(url, "far", study)
    other = make_study(url, name="other", space=BOTH)
    record = other._study.user_attrs["record"]
    other._study.set_user_attr("record", {**record, "directions": ["maximize"]})
    with pytest.raises(UserError, match=r"'other' has loss \(maximize\) and this one loss"):
        learn(url, "other", study)

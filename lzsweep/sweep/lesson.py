"""Lessons: finished trials of another study that a sampler learns from (`study.warm_start`).

They are shown to the sampler alone. They are no rows of the study, so they count in no budget,
take no number, are never the best, and no pruner compares with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from lzsweep.errors import UserError
from lzsweep.sweep.record import Record
from lzsweep.sweep.space import Parameter, Space, Value, shown_params
from lzsweep.sweep.storage import is_there
from lzsweep.sweep.studies import find_study
from lzsweep.sweep.study import Study
from lzsweep.sweep.syntax import read_value

LEARNERS = ("TPESampler", "GPSampler", "CmaEsSampler")
"""Samplers that learn from trials which they did not propose themselves."""


def find_lessons(
    url: str, teacher: str, until: datetime, *, pupil: str, record: Record
) -> tuple[list[FrozenTrial], int]:
    """What a study had found at a time, as lessons for another one.

    Args:
        url: of the study database, which is that of both.
        teacher: name of the study that teaches.
        until: trials that ended later do not count, so that all workers learn the same.
        pupil: name of the study that learns.
        record: what that one sweeps.

    Returns:
        The lessons, and the number of finished trials that do not fit the pupil's space.

    Raises:
        UserError: there is no such study, it has other objectives, or nothing fits.
    """
    if teacher == pupil:
        raise UserError(f"study.warm_start must name another study, but {pupil!r} is this one")
    source = find_teacher(url, teacher, record.metrics, record.directions)
    rows = [r for r in source.rows() if r.datetime_complete and r.datetime_complete <= until]
    space = Space.from_json(record.tree, record.fixed)
    lessons, n_skipped = to_lessons(rows, space, record.settings, len(record.metrics))
    if not lessons:
        raise UserError(
            f"study.warm_start must name a study that fits, but none of the {n_skipped} finished"
            f" trials of {teacher!r} lies in this search space; widen the space or leave it out"
        )
    return lessons, n_skipped


def find_teacher(url: str, name: str, metrics: Sequence[str], directions: Sequence[str]) -> Study:
    """The study that teaches one of these objectives.

    Raises:
        UserError: there is no such study, or it has other objectives.
    """
    source = find_study(url, name) if is_there(url) else None
    if source is None:
        raise UserError(
            "study.warm_start must name a study of the same database, but there is no"
            f" {name!r} in it; see `lzsweep list`"
        )
    theirs = source.record
    if (tuple(metrics), tuple(directions)) != (theirs.metrics, theirs.directions):
        raise UserError(
            "study.warm_start must name a study of the same objectives, but"
            f" {name!r} has {', '.join(theirs.metrics)} ({', '.join(theirs.directions)})"
            f" and this one {', '.join(metrics)} ({', '.join(directions)})"
        )
    return source


def to_lessons(
    rows: Sequence[FrozenTrial], space: Space, settings: Mapping[str, str], n_objectives: int
) -> tuple[list[FrozenTrial], int]:
    """What rows of another study teach about a space.

    A row is a lesson if its parameters, as people see them, are a whole point of the space; what
    it has beyond must be what the space's study keeps fixed.

    Args:
        rows: of the other study; only complete and pruned ones can teach.
        space: of the study that learns.
        settings: of the study that learns: key -> its fixed value as JSON.
        n_objectives: of both.

    Returns:
        The lessons, and how many rows were none.
    """
    taught = [row for row in rows if row.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    lessons = []
    for row in taught:
        point = _as_point(shown_params(row.params, row.distributions), space, settings)
        if point is not None:
            lessons.append(_lesson(row, list(space.active(point)), point, n_objectives))
    return lessons, len(taught) - len(lessons)


def teach(sampler: BaseSampler, lessons: Sequence[FrozenTrial], space: Space) -> None:
    """Give CMA-ES its lessons, which it does not read from the study as the others do."""
    if not lessons or not isinstance(sampler, CmaEsSampler):
        return
    numeric = [
        p
        for p in space.parameters
        if not isinstance(p.distribution, CategoricalDistribution) and not p.distribution.single()
    ]
    sampler._source_trials = [
        _lesson(t, numeric, t.params, 1) for t in lessons if t.state == TrialState.COMPLETE
    ] or None


def _as_point(
    params: Mapping[str, Value], space: Space, settings: Mapping[str, str]
) -> dict[str, Value] | None:
    point: dict[str, Value] = {}
    for p in space.active(point):
        if not p.holds(params.get(p.key)):
            return None
        point[p.key] = params[p.key]
    for key in params.keys() - point.keys():
        is_fixed = settings.get(key) == json.dumps(read_value(params[key]))
        if not is_fixed and f"{key}={params[key]}" not in space.fixed:
            return None
    return point


def _lesson(
    row: FrozenTrial, parameters: Sequence[Parameter], point: Mapping[str, Value], n: int
) -> FrozenTrial:
    # Its number is -1, as of any row of no study: before all others.
    return create_trial(
        state=row.state,
        values=row.values if row.state == TrialState.COMPLETE else None,
        params={p.name: point[p.key] for p in parameters},
        distributions={p.name: p.distribution for p in parameters},
        # TPE cannot read the curves of pruned trials where there are several objectives.
        intermediate_values=row.intermediate_values if n == 1 else None,
    )

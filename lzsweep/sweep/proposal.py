"""What an attempt trains: the sampler's proposal, never a point that the study has already.

Optuna writes a parameter the moment it is suggested and cannot take it back. So a point is drawn
from the sampler first and written once it is known to be new: a proposal that is refused leaves
no row, counts nowhere and is no lie to the samplers that look at running trials.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Container, Mapping, Sequence
from itertools import islice
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import _filter_study
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from lzsweep.sweep.space import Point, Space, Value, point_key, shown_params, tidy

TRIES = 10
"""How often the sampler is asked for a new point before more is decided for it."""


def propose(
    study: optuna.Study,
    row: FrozenTrial,
    space: Space,
    known: Collection[Point],
    lessons: Sequence[FrozenTrial],
) -> dict[str, tuple[BaseDistribution, Value]]:
    """Choose the parameters that a running row lacks.

    Args:
        study: with the sampler that decides.
        row: running; what it has (of a queued point, of a retry) stays.
        space: what is searched.
        known: points that must not be trained again; some other is left to the row.
        lessons: trials of another study that the sampler sees beside those of its own.

    Returns:
        Optuna's name of the parameter -> its distribution and value.
    """
    study.sampler.before_trial(_filter_study(study, row), row)
    has = shown_params(row.params, row.distributions)
    if space.is_whole(has):
        return {}
    point = _new_point(study, row, space, has, known, lessons)
    return {
        p.name: (p.distribution, point[p.key]) for p in space.active(point) if p.key not in has
    }


def _new_point(
    study: optuna.Study,
    row: FrozenTrial,
    space: Space,
    has: Mapping[str, Value],
    known: Collection[Point],
    lessons: Sequence[FrozenTrial],
) -> dict[str, Value]:
    study._thread_local.cached_all_trials = None
    view = _filter_study(study, row)  # Hyperband shows each bracket its own trials
    taught = _Taught(study, view, lessons) if lessons else view
    chance = RandomSampler(seed=row.number)  # so that a seeded sweep repeats
    dice = random.Random(row.number)

    def draw(samplers: Sequence[BaseSampler], has: Mapping[str, Value]) -> dict[str, Value] | None:
        points = (_draw(sampler, taught, row, space, has) for sampler in samplers)
        return next((point for point in points if point_key(point) not in known), None)

    if point := draw([study.sampler] * TRIES, has):
        return point
    settled = _settle(space, has, known, dice)
    again = [study.sampler] * TRIES if settled != has else []
    if point := draw([*again, *[chance] * TRIES], settled):
        return point
    if not (n_left := space.n_left(settled, known)):
        return _draw(chance, taught, row, space, settled)  # an interval of hardly any floats
    free = (p for p in space.grid(settled) if point_key(p) not in known)
    return list(islice(free, dice.randrange(n_left) + 1))[-1]


def _settle(
    space: Space, has: Mapping[str, Value], known: Collection[Point], dice: random.Random
) -> dict[str, Value]:
    """Choose options that have points left, as often as chance would meet a new point there.

    Where some options own a continuous range and the others are used up, a sampler that knows of
    no end might propose the latter for ever.
    """
    settled = dict(has)
    for p in space.active(settled):
        if p.key in space.owners and p.key not in settled:
            options = p.values()
            shares = [_share_left(space, {**settled, p.key: option}, known) for option in options]
            settled[p.key] = dice.choices(options, shares)[0]
    return settled


def _share_left(space: Space, chosen: Mapping[str, Value], known: Collection[Point]) -> float:
    size, n_left = space.size(chosen), space.n_left(chosen, known)
    return 1.0 if size is None or n_left is None else n_left / size


def _draw(
    sampler: BaseSampler,
    study: optuna.Study,
    row: FrozenTrial,
    space: Space,
    has: Mapping[str, Value],
) -> dict[str, Value]:
    """One proposal, as `optuna.Trial` would sample it, but written nowhere."""
    relative_space = sampler.infer_relative_search_space(study, row)
    relative = sampler.sample_relative(study, row, relative_space)
    point: dict[str, Value] = {}
    for p in space.active(point):
        d = p.distribution
        if p.key in has:
            point[p.key] = has[p.key]
        elif d.single():
            point[p.key] = p.values()[0]
        elif p.name in relative and d._contains(d.to_internal_repr(relative[p.name])):
            point[p.key] = tidy(d, relative[p.name])
        else:
            point[p.key] = tidy(d, sampler.sample_independent(study, row, p.name, d))
    return point


class _Taught(optuna.Study):
    """The study as a sampler sees it: with the lessons before the trials of its own."""

    def __init__(
        self, study: optuna.Study, view: optuna.Study, lessons: Sequence[FrozenTrial]
    ) -> None:
        self.__dict__.update(study.__dict__)
        self._view = view
        self._lessons = lessons

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[Any]:
        lessons = [t for t in self._lessons if states is None or t.state in states]
        return [*lessons, *self._view._get_trials(deepcopy, states, use_cache)]

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

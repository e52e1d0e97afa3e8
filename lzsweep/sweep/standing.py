"""How a trial stands among the others at a rung, for Optuna's pruners to judge it by.

Optuna prunes by one value at each step and keeps it with the step. With several objectives there
is no such value, and with several seeds it changes as they reach the rung. So the vectors are kept
by rung, and a pruner is shown a study in memory, made for this one question.

For several objectives a vector's value is the number of trials which dominate it at the rung in
question (the rank of Fonseca and Fleming, 1993), so nothing on the front is worse than anything
else. The judged trial's earlier vectors are ranked at this rung too: as with one objective, what
counts for `median` is whether its best so far would do now.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

_BY_RANK = (
    NopPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    HyperbandPruner,
)
_TRIFLE = 1e-6


@dataclass(frozen=True)
class Climb:
    """A trial as a pruner sees it.

    Attributes:
        number: of the trial.
        state: Optuna's of its latest attempt.
        vectors: rung -> its objectives there.
        noted: what a pruner keeps in a trial (`completed_rung_0`) -> the rung where it did.
    """

    number: int
    state: TrialState
    vectors: Mapping[int, Sequence[float]]
    noted: Mapping[str, int]


def judge(
    pruner: BasePruner,
    study_name: str,
    directions: Sequence[str],
    climbs: Sequence[Climb],
    number: int,
    rung: int,
) -> tuple[bool, dict[str, int]]:
    """Whether a pruner stops a trial at a rung that it has reached.

    Args:
        pruner: any of Optuna's for one objective; for several see `pruner_problem`.
        study_name: Hyperband derives brackets from it.
        directions: "minimize" or "maximize" for each objective.
        climbs: all trials of the study.
        number: of the judged one; its rungs above `rung` are not looked at.
        rung: where it is judged.

    Returns:
        The verdict, and what the pruner noted in the trial: its name -> `rung`.
    """
    signs = np.array([1.0 if d == "minimize" else -1.0 for d in directions])
    known = {c.number: {r: _losses(v, signs) for r, v in c.vectors.items()} for c in climbs}
    there = np.array([losses[rung] for losses in known.values() if rung in losses])
    shadow = optuna.create_study(study_name=study_name, storage=InMemoryStorage())
    by_number = {climb.number: climb for climb in climbs}
    for n in range(max(by_number) + 1):
        # Numbers without a trial belong to retries; Hyperband goes by the number.
        climb = by_number.get(n, Climb(n, TrialState.FAIL, {}, {}))
        scores = {r: _score(losses, there) for r, losses in known.get(n, {}).items()}
        if n == number:
            curve = {r: losses for r, losses in known[n].items() if r <= rung}
            fading = _fading(curve)
            scores = {r: scores[r] + fading.get(r, 0.0) for r in curve}
        is_before = {r: n != number or r < rung for r in scores}
        shadow.add_trial(
            create_trial(
                state=climb.state,
                value=0.0 if climb.state == TrialState.COMPLETE else None,
                intermediate_values=scores,
                system_attrs={k: scores[r] for k, r in climb.noted.items() if is_before.get(r)},
            )
        )
    mine = shadow.get_trials()[number]
    is_bad = bool(pruner.prune(shadow, mine))
    attributes = shadow.get_trials(deepcopy=False)[number].system_attrs
    return is_bad, {key: rung for key in attributes if key not in mine.system_attrs}


def _losses(vector: Sequence[float], signs: NDArray[np.float64]) -> NDArray[np.float64]:
    losses = np.array(vector) * signs
    return np.where(np.isnan(losses), np.inf, losses)


def _score(losses: NDArray[np.float64], there: NDArray[np.float64]) -> float:
    if len(losses) == 1:
        return float(losses[0])
    dominates = (there <= losses).all(axis=1) & (there < losses).any(axis=1)
    return float(dominates.sum())


def _fading(curve: Mapping[int, NDArray[np.float64]]) -> dict[int, float]:
    """By rung, minus a trifle for each of the trial's own vectors that this one dominates.

    A trial that gets worse at the end of all ranks keeps its rank; `patient` sees it by this.
    """
    if not curve:
        return {}
    all_of_it = np.array(list(curve.values()))
    return {
        r: -_TRIFLE * float(((all_of_it >= v).all(axis=1) & (all_of_it > v).any(axis=1)).sum())
        for r, v in curve.items()
        if len(v) > 1
    }


def each_trial_once(
    study: optuna.Study, find_rows: Callable[[], Mapping[int, FrozenTrial]]
) -> optuna.Study:
    """A study as a pruner is to see it: a trial's latest attempt stands for it, by its number.

    What a pruner notes in a trial its later attempts have as well, so with all of Optuna's rows
    a trial would count once for each of them.

    Args:
        study: that is pruned; what is noted goes there.
        find_rows: looks up the latest attempts by the numbers of their trials.
    """
    view = copy.copy(study)
    view._storage = _LatestRows(study._storage, find_rows)  # type: ignore[assignment]
    return view


class _LatestRows:
    def __init__(
        self, storage: BaseStorage, find_rows: Callable[[], Mapping[int, FrozenTrial]]
    ) -> None:
        self._storage = storage
        self._find_rows = find_rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        rows = [
            row if row.number == number else _renumbered(row, number)
            for number, row in self._find_rows().items()
            if states is None or row.state in states
        ]
        return copy.deepcopy(rows) if deepcopy else rows


def _renumbered(row: FrozenTrial, number: int) -> FrozenTrial:
    row = copy.copy(row)
    row.number = number
    return row


def pruner_problem(pruner: Any, n_objectives: int) -> str:
    """Why a pruner cannot judge by several objectives, in words; empty if it can."""
    inner = pruner._wrapped_pruner if isinstance(pruner, PatientPruner) else pruner
    if n_objectives == 1 or inner is None or isinstance(inner, _BY_RANK):
        return ""
    return (
        "hydra.sweeper.pruner must judge several objectives by their rank, which"
        f" {type(inner).__name__} cannot; those that can: none, median, percentile, asha,"
        " hyperband, patient"
    )

"""A replica of a study for Optuna's plots: in memory, of the trials as people see them.

Their own numbers, and the parameters by the names that were typed.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from lzsweep.sweep.findings import Findings
from lzsweep.sweep.record import Trial

MAX_LABEL = 16


def make_replica(findings: Findings) -> optuna.Study:
    """A study in memory of the same trials under the same numbers.

    A number that a retry took away is filled with a failed trial, which no plot shows.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=list(findings.record.directions))
    optuna.logging.set_verbosity(verbosity)
    study.set_metric_names(list(findings.record.metrics))
    distributions = {name: _distribution(findings, name) for name in findings.names()}
    trials = {trial.number: trial for trial in findings.trials}
    for number in range(max(trials, default=-1) + 1):
        study.add_trial(_as_row(trials.get(number), distributions))
    return study


def _as_row(trial: Trial | None, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    if trial is None or trial.state not in ("complete", "pruned"):
        return create_trial(state=TrialState.FAIL)
    known = {name: distributions[name] for name in trial.params}
    return create_trial(
        state=TrialState.COMPLETE if trial.state == "complete" else TrialState.PRUNED,
        values=trial.values,
        params={
            name: _label(value) if isinstance(known[name], CategoricalDistribution) else value
            for name, value in trial.params.items()
        },
        distributions=known,
        intermediate_values=dict(trial.curve),
    )


def _distribution(findings: Findings, name: str) -> BaseDistribution:
    # Of what was tried, not of what might have been: then a plot's axis shows the trials.
    values: list[Any] = [t.params[name] for t in findings.trials if name in t.params]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers:
        return CategoricalDistribution(list(dict.fromkeys(map(_label, values))))
    log = findings.is_log(name) and min(values) > 0
    if all(isinstance(v, int) for v in values):
        return IntDistribution(min(values), max(values), log=log)
    return FloatDistribution(min(values), max(values), log=log)


def _label(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 8]}…{text[-7:]}"

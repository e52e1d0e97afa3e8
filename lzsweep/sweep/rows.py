"""The rows of attempts, where Optuna's own words are too many or none.

What belongs together is written in one transaction, for on a PostgreSQL each is a wait for the
disk; what is open and who is alive is asked with one query.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
import sqlalchemy.orm
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

from lzsweep.sweep.process import is_dead
from lzsweep.sweep.record import Claim
from lzsweep.sweep.space import Value

OpenRows = frozenset[tuple[int, str]]
"""Optuna's ids of attempts, and their states."""


class TrialLost(Exception):
    """Another worker took this trial up, so its process here must end."""


class KeptRows(_CachedStorage):
    """Optuna's cache, which reads all that has not ended again, made to spare what waits.

    A waiting row changes only by being started, so it is read once. Of a queued grid that is all
    but a few rows, and each claim would read them while everybody else waits for the lock.
    """

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        with self._lock:
            kept = self._studies.setdefault(study_id, _StudyInfo())
            before = kept.unfinished_trial_ids
            waited = {t._trial_id for t in kept.trials.values() if t.state == TrialState.WAITING}
            if waited:
                waiting = TrialState.WAITING.name
                waited &= {
                    row for row, state in open_rows(self._backend, study_id) if state == waiting
                }
            newest = max(before | {kept.last_finished_trial_id})
            rows = self._backend._get_trials(study_id, None, before - waited, newest)
            self._add_trials_to_cache(study_id, rows)
            ended = {row._trial_id for row in rows if row.state.is_finished()}
            kept.unfinished_trial_ids = (before | {row._trial_id for row in rows}) - ended
            kept.last_finished_trial_id = max(ended | {kept.last_finished_trial_id})


@contextmanager
def lost_when_finished(claim: Claim) -> Iterator[None]:
    """Turn a write into a row that has an end into the loss of the trial that was claimed."""
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise TrialLost(f"trial {claim.trial.number} goes on elsewhere") from error


def add_rows(storage: RDBStorage, study_id: int, rows: Sequence[FrozenTrial]) -> None:
    """Add rows that wait, all of them or none, in far fewer statements than Optuna's one by one.

    Args:
        storage: with the study.
        study_id: Optuna's id of it.
        rows: as `create_trial` makes them, with parameters and system attributes.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        _lock_numbers(session, study_id)
        n_before = session.query(models.TrialModel).filter_by(study_id=study_id).count()
        for number, row in enumerate(rows, start=n_before):
            params = [
                models.TrialParamModel(
                    param_name=name,
                    param_value=d.to_internal_repr(row.params[name]),
                    distribution_json=distribution_to_json(d),
                )
                for name, d in row.distributions.items()
            ]
            attributes = [
                models.TrialSystemAttributeModel(key=key, value_json=json.dumps(value))
                for key, value in row.system_attrs.items()
            ]
            session.add(
                models.TrialModel(
                    study_id=study_id,
                    number=number,
                    state=row.state,
                    params=params,
                    system_attributes=attributes,
                )
            )


def begin_row(
    storage: RDBStorage,
    row: int,
    params: Mapping[str, tuple[BaseDistribution, Value]],
    claim: Mapping[str, Any],
) -> None:
    """Give a running row its claim and with it all else: who sees that sees the parameters.

    Args:
        storage: with the row.
        row: Optuna's id; it has no heartbeat yet and gets its first one.
        params: that it lacks: Optuna's name -> distribution and value.
        claim: whose it is.

    Raises:
        UpdateFinishedTrialError: somebody ended the row.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        for name, (distribution, value) in params.items():
            # That it fits the others of its name is known: all are of the study's one space.
            storage._set_trial_param_without_commit(
                session,
                row,
                name,
                distribution.to_internal_repr(value),
                distribution,
                distribution,
            )
        storage._set_trial_attr_without_commit(
            session, models.TrialUserAttributeModel, row, "claim", dict(claim)
        )
        session.add(models.TrialHeartbeatModel(trial_id=row))


def end_row(
    storage: RDBStorage,
    row: int,
    state: TrialState,
    values: Sequence[float] | None = None,
    **attributes: Any,
) -> None:
    """Give a row its end.

    Args:
        storage: with the row.
        row: Optuna's id.
        state: complete, pruned or failed.
        values: the objectives.
        attributes: user attributes that say more.

    Raises:
        UpdateFinishedTrialError: it has one.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        _end(storage, session, row, state, values, attributes)


def add_to_end(storage: RDBStorage, row: int, **known: Any) -> None:
    """Say more in the user attribute `end` of a row that has ended, which Optuna has no word for.

    Args:
        storage: with the row.
        row: Optuna's id.
        known: what became known since.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        rows = session.query(models.TrialUserAttributeModel).filter_by(trial_id=row, key="end")
        for end in rows.with_for_update():
            end.value_json = json.dumps({**json.loads(str(end.value_json)), **known})


def hand_over(
    storage: RDBStorage, study_id: int, row: int, successor: FrozenTrial, **attributes: Any
) -> None:
    """End a row as failed and add the one that goes on with its trial: both, or neither.

    Args:
        storage: with the row.
        study_id: Optuna's id of the study.
        row: Optuna's id.
        successor: the row to be added.
        attributes: user attributes of the row that ends.

    Raises:
        UpdateFinishedTrialError: the row has an end; nothing was added.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        _lock_numbers(session, study_id)
        _end(storage, session, row, TrialState.FAIL, None, attributes)
        storage._get_prepared_new_trial(study_id, successor, session)


def _lock_numbers(session: sqlalchemy.orm.Session, study_id: int) -> None:
    # A new row's number is how many there are, so as in Optuna one process makes them at a time.
    models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)


def _end(
    storage: RDBStorage,
    session: sqlalchemy.orm.Session,
    row: int,
    state: TrialState,
    values: Sequence[float] | None,
    attributes: Mapping[str, Any],
) -> None:
    trial = models.TrialModel.find_or_raise_by_id(row, session, for_update=True)
    storage.check_trial_is_updatable(row, trial.state)  # type: ignore[arg-type]  # a column
    for name, value in attributes.items():
        storage._set_trial_attr_without_commit(
            session, models.TrialUserAttributeModel, row, name, value
        )
    for objective, value in enumerate(values or ()):
        storage._set_trial_value_without_commit(session, trial, objective, value)
    trial.state = state
    trial.datetime_complete = datetime.now()


def open_rows(storage: RDBStorage, study_id: int) -> OpenRows:
    """The attempts of a study that are running or waiting."""
    rows = models.TrialModel
    query = (
        sqlalchemy.select(rows.trial_id, rows.state)
        .where(rows.study_id == study_id)
        .where(rows.state.in_((TrialState.RUNNING, TrialState.WAITING)))
    )
    with storage.engine.connect() as connection:
        return frozenset((row, state.name) for row, state in connection.execute(query))


def find_stale(
    storage: RDBStorage, running: Sequence[FrozenTrial], *, by_silence: bool = True
) -> list[FrozenTrial]:
    """Those of these running attempts whose worker is dead or silent for the grace time.

    A worker of this machine is looked up in its process table, which needs no waiting. One
    killed between its claim and its first heartbeat is judged by the start of the attempt.

    Args:
        storage: of the study.
        running: attempts.
        by_silence: whether silence counts; it does not if nobody could be heard.
    """
    silent = _silent(storage, running) if running and by_silence else set()
    claims = ((row, row.user_attrs.get("claim")) for row in running)
    return [row for row, claim in claims if row._trial_id in silent or (claim and is_dead(claim))]


def _silent(storage: RDBStorage, running: Sequence[FrozenTrial]) -> set[int]:
    beats = models.TrialHeartbeatModel
    query = sqlalchemy.select(beats.trial_id, beats.heartbeat, sqlalchemy.func.now()).where(
        beats.trial_id.in_([row._trial_id for row in running])
    )
    grace = timedelta(seconds=storage.grace_period or 0)
    with storage.engine.connect() as connection:
        # Both are of the database's clock; some databases say the zone with only one of them.
        age = {
            row: now.replace(tzinfo=None) - beat.replace(tzinfo=None)
            for row, beat, now in connection.execute(query)
        }
    for row in running:
        started = row.datetime_start or datetime.min
        age.setdefault(row._trial_id, datetime.now() - started)
    return {row for row, silence in age.items() if silence > grace}

"""Who is alive and what is open, asked of the database because Optuna has no word for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from lzsweep.sweep.process import is_alive, this_process

OpenRows = frozenset[tuple[int, str]]
"""Optuna's ids of attempts, and their states."""


def open_rows(storage: RDBStorage, study_id: int) -> OpenRows:
    """The attempts of a study that are running or waiting."""
    rows = models.TrialModel
    query = (
        sqlalchemy.select(rows.trial_id, rows.state)
        .where(rows.study_id == study_id)
        .where(rows.state.in_((TrialState.RUNNING, TrialState.WAITING)))
    )
    with storage.engine.connect() as connection:
        return frozenset((row, str(state)) for row, state in connection.execute(query))


def find_stale(storage: RDBStorage, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those of these running attempts whose worker is dead or silent for the grace time.

    A worker of this machine is looked up in its process table, which needs no waiting. One
    killed between its claim and its first heartbeat is judged by the start of the attempt.
    """
    here = this_process()
    silent = _silent(storage, running) if running else set()
    stale = []
    for row in running:
        claim = row.user_attrs.get("claim", {})
        is_here = claim.get("host") == here["host"]
        is_gone = is_here and (claim["boot"] != here["boot"] or not is_alive(claim))
        if is_gone or row._trial_id in silent:
            stale.append(row)
    return stale


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

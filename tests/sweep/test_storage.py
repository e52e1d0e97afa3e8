"""Connections of the study database."""

from __future__ import annotations

import pytest
import sqlalchemy

from lzsweep.sweep.studies import open_study
from tests.sweep.test_study import make_study


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_study_that_is_opened_keeps_one_connection(url: str) -> None:
    first = make_study(url)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    query = sqlalchemy.text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name")

    def n_connections() -> int:
        with engine.connect() as connection:
            return int(connection.execute(query, {"name": engine.url.database}).scalar_one())

    before = n_connections()
    opened = [open_study(url, first.name) for _ in range(5)]
    assert n_connections() == before + len(opened)

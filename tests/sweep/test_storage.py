"""Connections of the study database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from lzsweep.errors import UserError
from lzsweep.sweep.storage import open_storage, shown_url
from lzsweep.sweep.studies import open_study
from tests.sweep.test_study import make_study
from tests.tracking.conftest import empty_database  # noqa: F401


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


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:s3cret@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=me&password=s3cret",
        "postgresql://me:a/s3cret@127.0.0.1:1/db",
        "postgresql://me:s3cret@127.0.0.1:one/db",
        "postgresql:/me:s3cret@127.0.0.1:1/db",
    ],
)
def test_an_address_is_shown_without_its_password(address: str) -> None:
    assert "127.0.0.1" in shown_url(address)
    with pytest.raises(UserError, match=r"must (answer|be the URL of a database), but") as caught:
        open_storage(address)
    assert "s3cret" not in f"{caught.value} {shown_url(address)}"


def test_a_database_in_no_folder_and_one_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder of the study database must exist"):
        open_study(f"sqlite:///{tmp_path}/no/x.db", "s")
    with pytest.raises(UserError, match=r"postgresql\+psycopg://\*\*\*@127.0.0.1:1/x says"):
        open_study("postgresql://me:secret@127.0.0.1:1/x", "s")
    with pytest.raises(UserError, match="must be the URL of a database, but got"):
        open_study("lzsweep.db", "s")


def test_the_database_of_another_program_gets_no_tables_of_ours(
    tmp_path: Path,
    empty_database: Path,  # noqa: F811
) -> None:
    theirs = tmp_path / "theirs.db"
    with closing(sqlite3.connect(theirs)) as database:
        database.execute("CREATE TABLE games (id)")
    for file, whose in ((theirs, "another program"), (empty_database, "MLflow")):
        before = file.read_bytes()
        with pytest.raises(UserError, match=f"{file} is that of {whose}; set study.storage"):
            open_storage(f"sqlite:///{file}")
        assert file.read_bytes() == before
    (tmp_path / "notes.txt").write_text("no database at all, but a text of some length" * 40)
    with pytest.raises(UserError, match=r"file is not a database; set study\.storage"):
        open_storage(f"sqlite:///{tmp_path / 'notes.txt'}")


def test_a_database_of_a_kind_that_optuna_knows_and_we_do_not_is_refused() -> None:
    with pytest.raises(UserError, match="must be of SQLite or PostgreSQL, but got 'mysql://h/x'"):
        open_storage("mysql://h/x")

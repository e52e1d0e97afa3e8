"""The studies of a database: created or joined, opened, found, listed."""

from __future__ import annotations

from collections.abc import Callable, Collection

import optuna

from lzsweep.errors import UserError
from lzsweep.sweep.budget import Budget
from lzsweep.sweep.record import Record
from lzsweep.sweep.storage import database_lock, open_storage, shown_url
from lzsweep.sweep.study import Study


def open_study(url: str, name: str) -> Study:
    """Open an existing study.

    Raises:
        UserError: the database does not answer, or holds no study of that name.
    """
    if study := find_study(url, name):
        return study
    names = ", ".join(sorted(s.name for s in list_studies(url))) or "none"
    raise UserError(
        f"a study must exist to be read, but {shown_url(url)} has no study {name!r};"
        f" studies there: {names}"
    )


def find_study(url: str, name: str) -> Study | None:
    """Open a study if it exists.

    Raises:
        UserError: the database does not answer.
    """
    storage = open_storage(url)
    if not any(s.study_name == name for s in storage.get_all_studies()):
        return None
    study = Study(storage, optuna.load_study(study_name=name, storage=storage))
    return study if "record" in study._study.user_attrs else None


def create_study(
    url: str,
    name: str,
    record: Record,
    budget: Budget,
    *,
    given: Collection[str] = (),
    prepare: Callable[[], None] = lambda: None,
) -> tuple[Study, bool]:
    """Create a study, or join the one of that name if it sweeps the same thing.

    Args:
        url: of the study database.
        name: of the study.
        record: what is swept.
        budget: of a new study.
        given: fields of the budget that a study which is joined takes over as well.
        prepare: called first where the study is new; of several who create it at once by one.

    Returns:
        The study and whether it is new.

    Raises:
        UserError: the database does not answer, or the study of that name sweeps another thing,
            logs elsewhere or is not ours.
    """
    storage = open_storage(url)
    with database_lock(storage.engine, f"lzsweep/{name}"):
        known = [s for s in storage.get_all_studies() if s.study_name == name]
        is_new = not any("record" in s.user_attrs for s in known)
        if is_new and any(storage.get_n_trials(s._study_id) for s in known):
            raise UserError(
                f"a study must be new or ours, but {shown_url(url)} has one of another program"
                f" that is named {name!r}; choose another study.name"
            )
        if is_new:
            prepare()
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=list(record.directions),
            load_if_exists=True,
        )
        if not is_new:
            _check_same(Record.from_json(study.user_attrs["record"]), record, name)
            before = study.user_attrs["budget"]
            budget = Budget(**{**before, **{k: vars(budget)[k] for k in given}})
        study.set_user_attr("budget", vars(budget))
        study.set_user_attr("stopped", "")
        if is_new:  # at last: who dies before leaves no study
            study.set_user_attr("record", vars(record))
    return Study(storage, study), is_new


def list_studies(url: str) -> list[Study]:
    """All of our studies in a database, newest first."""
    storage = open_storage(url)
    names = [s.study_name for s in storage.get_all_studies() if "record" in s.user_attrs]
    studies = [Study(storage, optuna.load_study(study_name=n, storage=storage)) for n in names]
    return sorted(studies, key=lambda study: -study.record.created)


def _check_same(kept: Record, asked: Record, name: str) -> None:
    both = set(kept.settings) | set(asked.settings)
    keys = sorted(both, key=lambda key: ("(searched)" not in key, key))
    differing = [k for k in keys if kept.settings.get(k) != asked.settings.get(k)]
    if differing:
        shown = "; ".join(
            f"{k} is {kept.settings.get(k, 'not set')}, here {asked.settings.get(k, 'not set')}"
            for k in differing[:5]
        )
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"a study keeps what it sweeps, but {name!r} differs from this command: {shown}{more};"
            " choose another study.name"
        )
    if kept.tracking_uri != asked.tracking_uri:
        raise UserError(
            f"a study keeps its MLflow server, but {name!r} logs to {kept.tracking_uri} and this"
            f" command to {asked.tracking_uri}; set tracking.uri or MLFLOW_TRACKING_URI"
        )

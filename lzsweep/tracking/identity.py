"""Which MLflow run belongs to a journal: found by its key, or made, never twice.

A call that made a run may die, or time out, before its answer is heard. So a run is searched by
its key whenever one may have been made, and since a slow server may make it even later, such a
journal looks for doubles once more when its run ends.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from filelock import FileLock

from lzsweep.tracking.client import classify, sqlite_file
from lzsweep.tracking.journal import KEY_TAG, Record
from lzsweep.tracking.names import fit_tag, fit_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_ORIGIN_TAGS = ("mlflow.user", "mlflow.source.name", "mlflow.source.type")


def find_run(client: MlflowClient, experiment: str, key: str) -> str | None:
    """Id of the oldest run of a key, None if there is none."""
    runs = _runs(client, experiment, key)
    return str(runs[0].info.run_id) if runs else None


def create_run(client: MlflowClient, experiment: str, start: Record) -> str:
    """Make the run of a journal's start record and return its id.

    Only what MLflow cannot refuse goes along; the tags and params follow on their own.
    """
    run = start["run"]
    tags = {k: fit_tag(v) for k, v in run["tags"].items() if k in _ORIGIN_TAGS}
    tags[KEY_TAG] = run["key"]
    if run["parent_run_id"]:
        tags["mlflow.parentRunId"] = run["parent_run_id"]
    began = int(time.time() * 1000) if run["shared"] else start["time"]
    try:
        made = client.create_run(
            experiment, start_time=began, tags=tags, run_name=fit_text(run["name"])[:250]
        )
    except Exception as e:
        raise classify(e) from e
    return str(made.info.run_id)


def settle(client: MlflowClient, experiment: str, key: str, mine: str) -> str:
    """Two programs may make a shared run at once through a server: both keep the older one."""
    time.sleep(0.5)  # So that whoever took an earlier time has its run made.
    first = find_run(client, experiment, key) or mine
    if first != mine:
        _delete(client, mine)
    return first


def drop_doubles(client: MlflowClient, experiment: str, key: str, kept: str) -> None:
    """Delete the runs of a key that a slow server made after we had given up on them."""
    for run in _runs(client, experiment, key):
        if run.info.run_id != kept:
            _delete(client, run.info.run_id)


def alone(uri: str) -> AbstractContextManager[object]:
    """Keep other processes of this machine from making the same shared run in a database."""
    file = sqlite_file(uri)
    return FileLock(f"{file}.lock") if file else nullcontext()


def _runs(client: MlflowClient, experiment: str, key: str) -> list[Run]:
    try:
        runs = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=100)
    except Exception as e:
        raise classify(e) from e
    return sorted(runs, key=lambda r: (r.info.start_time, r.info.run_id))


def _delete(client: MlflowClient, run_id: str) -> None:
    try:
        client.delete_run(run_id)
    except Exception as e:
        raise classify(e) from e

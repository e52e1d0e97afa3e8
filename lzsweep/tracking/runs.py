"""Runs as people see them: the server they go to, the parent run of a study, where code ran.

A study's parent run has a journal in the study's folder like any other run. Its key is the name
of the study in its experiment, so that programs on several machines that open the same study get
the same run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from importlib import metadata
from pathlib import Path

from lzsweep.errors import TrackingError
from lzsweep.tracking.client import (
    classify,
    connect,
    other_version,
    reason,
    redact,
    resolve_uri,
    sqlite_file,
    unreachable,
)
from lzsweep.tracking.delivery import deliver_or_warn
from lzsweep.tracking.journal import Journal, Status

COMMIT_TAG = "mlflow.source.git.commit"
"""MLflow's own tag of the code's version."""
DIRTY_TAG = "lzsweep.git.dirty"
"""Whether the code had changes that no commit has."""
CHANGES_TAG = "lzsweep.git.changes"
"""Digest of those changes, so that other ones are told from the same."""
VERSION_TAG = "lzsweep.version."
"""Begins the tags of the versions of Python and of the packages that compute."""

_CONNECT_S = 3.05
_ANSWER_S = 6.0
_PACKAGES = (
    "lzsweep",
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "optuna",
    "mlflow",
    "numpy",
)
_SLURM = ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_PARTITION", "CLUSTER_NAME", "NODELIST")


def check_server(uri: str, experiment: str = "") -> None:
    """Make sure that MLflow answers, lets us in and takes runs, within about ten seconds.

    mlflow itself is only imported where a server wants more than a plain request.

    Args:
        uri: The tracking server.
        experiment: Where the runs go; empty if there are none.

    Raises:
        TrackingError: It does not answer, is no MLflow server, refuses us, the SQLite file cannot
            be written or is of another version, or the experiment is deleted. One line, without
            secrets.
    """
    uri = resolve_uri(uri)
    file = sqlite_file(uri)
    if file is not None:
        is_deleted = _check_file(file, experiment)
    else:
        found = _ask(uri, experiment)
        if isinstance(found, str):
            raise TrackingError(
                f"An MLflow server must answer at tracking.uri={redact(uri)}, but {found}. "
                "Start it (lzsweep serve), correct the address, or use sqlite:///mlflow.db."
            )
        is_deleted = any(name == experiment for name in found)
    if is_deleted:
        raise TrackingError(
            f"tracking.experiment must not be deleted, but {experiment!r} at {redact(uri)} is. "
            "Restore it in MLflow, or choose another name."
        )


def _ask(uri: str, experiment: str) -> list[str] | str:
    """What is wrong with a server; else the deleted experiments of a name, if any."""
    import requests

    quote = "'" if '"' in experiment else '"'
    query = f"name = {quote}{experiment}{quote}" if quote not in experiment else ""
    try:
        answer = requests.post(
            f"{uri}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1, "view_type": "DELETED_ONLY", "filter": query},
            timeout=(_CONNECT_S, _ANSWER_S),
        )
    except requests.exceptions.SSLError:
        return _ask_with_client(uri, query)
    except requests.exceptions.RequestException as e:
        return unreachable(reason(e))
    if answer.status_code in (401, 403):
        return _ask_with_client(uri, query)
    if answer.status_code >= 500:
        return f"it answered with error {answer.status_code}"
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not answer.ok or not isinstance(found, dict):
        return f"what answered is no MLflow server (status {answer.status_code})"
    return [one.get("name", "") for one in found.get("experiments", [])]


def _ask_with_client(uri: str, query: str) -> list[str] | str:
    # MLflow's client knows all ways to prove who we are and whom we trust.
    try:
        from mlflow.entities import ViewType

        deleted = ViewType.DELETED_ONLY
        found = connect(uri).search_experiments(deleted, max_results=1, filter_string=query)
        return [one.name for one in found]
    except Exception as e:
        text = str(classify(e))
        if "401" in text or "403" in text or "authenticate" in text.lower():
            return (
                "it refuses our name or password (set MLFLOW_TRACKING_USERNAME and "
                f"MLFLOW_TRACKING_PASSWORD): {text[:200]}"
            )
        return text


def _check_file(file: Path, experiment: str) -> bool:
    """Whether the experiment is deleted in a file that can be used, or could be made."""
    folder = next(p for p in file.parents if p.exists())
    problem = ""
    is_deleted = False
    if file.exists():
        try:
            # A URI path, so that nothing is created.
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=5)) as db:
                db.execute("BEGIN IMMEDIATE")
                is_deleted = _is_deleted(db, file, experiment)
        except sqlite3.Error as e:
            # In use by others for longer than we wait is no fault.
            problem = "" if "locked" in str(e) else str(e)
    elif not (folder.is_dir() and os.access(folder, os.W_OK)):
        problem = f"{folder} is no folder that we may write"
    if problem:
        raise TrackingError(
            f"The MLflow database of tracking.uri must be writable, but {file} is not: {problem}. "
            "Choose another place, e.g. tracking.uri=sqlite:////HOME/mlflow.db."
        )
    return is_deleted


def _is_deleted(db: sqlite3.Connection, file: Path, experiment: str) -> bool:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if not {"alembic_version", "experiments"} <= tables:
        return False  # nothing of MLflow yet
    (version,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
    if version not in _schema_heads():
        raise TrackingError(other_version(str(file)))
    stages = db.execute("SELECT lifecycle_stage FROM experiments WHERE name = ?", (experiment,))
    return ("deleted",) in stages


def _schema_heads() -> set[str]:
    """Versions of the installed MLflow's schema that no other one follows; found unimported."""
    spec = importlib.util.find_spec("mlflow")
    assert spec and spec.origin
    follows: dict[str, str] = {}
    for file in Path(spec.origin).parent.glob("store/db_migrations/versions/*.py"):
        found = dict(re.findall(r"^(revision|down_revision) = \W?(\w+)", file.read_text(), re.M))
        if "revision" in found:
            follows[found["revision"]] = found["down_revision"]
    return follows.keys() - follows.values()


def begin_parent(
    folder: Path | str,
    *,
    experiment: str,
    study: str,
    tags: Mapping[str, str] | None = None,
    description: str = "",
) -> None:
    """Begin the parent run of a study, or take it up again, in its journal.

    The server hears of it with the first run below it that is delivered.

    Args:
        folder: The study's folder; the journal of the run is kept there.
        experiment: MLflow experiment.
        study: Name of the study and of the run.
        tags: Further tags.
        description: Markdown, shown on the run's page.
    """
    notes = {"lzsweep.kind": "study", "lzsweep.study": study, **(tags or {})}
    if description:
        notes["mlflow.note.content"] = description
    with Journal(folder) as journal:
        journal.start(
            experiment=experiment, name=study, tags=notes, key=f"study {study} of {experiment}"
        )


def close_parent(
    folder: Path | str,
    uri: str,
    status: Status,
    *,
    description: str = "",
) -> bool:
    """End a study's parent run. Returns whether the server knows already; else `sync` tells it."""
    with Journal(folder) as journal:
        if description:
            journal.tags({"mlflow.note.content": description})
        journal.end(status)
    return deliver_or_warn(folder, uri)


def code_version() -> dict[str, str]:
    """What ran where, as tags: git commit, versions, host, Slurm ids.

    Asks git once a process; a program with many children hands it on to them.
    """
    tags = dict(_fixed_tags())
    for name in _SLURM:
        if value := os.environ.get(f"SLURM_{name}"):
            tags[f"lzsweep.slurm.{name.lower()}"] = value
    return tags


def changed_code(before: Mapping[str, str]) -> tuple[str, str] | None:
    """What of the code is another one than it was: commit, uncommitted changes, versions.

    Args:
        before: tags of `code_version` from then.

    Returns:
        What differs as it was and as it is, in words; None if nothing does.
    """
    now = code_version()
    versions = sorted(tag for tag in {*before, *now} if tag.startswith(VERSION_TAG))
    names = {
        COMMIT_TAG: "commit",
        CHANGES_TAG: "uncommitted changes",
        **{tag: tag.removeprefix(VERSION_TAG) for tag in versions},
    }
    other = {tag: name for tag, name in names.items() if before.get(tag) != now.get(tag)}
    if not other:
        return None
    was, is_now = (
        ", ".join(f"{n} {tags[t]}" if t in tags else f"no {n}" for t, n in other.items())
        for tags in (before, now)
    )
    return was, is_now


@functools.cache
def _fixed_tags() -> tuple[tuple[str, str], ...]:
    tags = {"lzsweep.host": platform.node(), f"{VERSION_TAG}python": platform.python_version()}
    for package in _PACKAGES:
        try:
            tags[f"{VERSION_TAG}{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return tuple((tags | _git_tags(Path(__file__).parents[2])).items())


def _git_tags(checkout: Path) -> dict[str, str]:
    """Commit of a checkout, whether and how it was changed; nothing for an installed package."""
    if not (checkout / ".git").exists():
        return {}
    try:
        status = _git(checkout, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
        changes = _git(checkout, "diff", "--no-ext-diff", "--no-textconv", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return {}
    tags = {DIRTY_TAG: "false"}
    for line in status.decode().splitlines():
        if line.startswith("# branch.oid "):
            tags[COMMIT_TAG] = line.split()[-1]
        elif not line.startswith("#"):
            digest = hashlib.blake2b(changes, digest_size=8).hexdigest()
            tags |= {DIRTY_TAG: "true", CHANGES_TAG: digest}
    return tags


def _git(checkout: Path, *command: str) -> bytes:
    done = subprocess.run(
        ["git", *command], cwd=checkout, capture_output=True, timeout=10, check=True
    )
    return done.stdout

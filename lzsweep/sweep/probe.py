"""What a cluster must offer before a sweep is put on it, asked here and from a compute node."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lzsweep.errors import LzsweepError
from lzsweep.sweep.slurm import QUERY_S, Workers, call, cancel, queue, told

PROBE_MIN = 5
"""Time limit of the probe, in minutes."""
PROBE_PATIENCE_S = 120.0
"""Time that the probe may wait in the queue before nobody waits for it any longer."""
LOOK_S = 2.0
"""Time between two looks for what the probe writes."""
SHOWN_S = 60.0
"""Time after which a network filesystem shows what another machine wrote, attributes cached."""

_logger = logging.getLogger(__name__)


def limit_problems(params: Mapping[str, Any]) -> list[str]:
    """What `hydra.launcher.*` asks for that the cluster does not have.

    Args:
        params: the launcher's parameters.

    Raises:
        LzsweepError: the cluster does not answer.
    """
    problems = []
    if len(asked := gpus_asked(params)) > 1:
        ways = ", ".join(f"hydra.launcher.{key} for {n}" for key, n in asked.items())
        problems.append(
            f"GPUs must be asked for in one way, but got {ways};"
            " set the others to null, e.g. hydra.launcher.gpus_per_node=null"
        )
    text = call("scontrol", "show", "partition", "--oneliner")
    partitions = {p["PartitionName"]: p for p in map(_fields, text.splitlines()) if p}
    name = params.get("partition")
    if name is None:
        name = next((n for n, p in partitions.items() if p.get("Default") == "YES"), None)
        if name is None:
            return [
                *problems,
                "a cluster without a default partition needs hydra.launcher.partition, one of"
                f" {', '.join(partitions)}",
            ]
    for one in str(name).split(","):
        if one not in partitions:
            problems.append(
                f"hydra.launcher.partition must exist, but got {one!r}; there are"
                f" {', '.join(partitions)}"
            )
        else:
            problems += _partition_problems(partitions[one], params)
    return problems


def _partition_problems(partition: Mapping[str, str], params: Mapping[str, Any]) -> list[str]:
    name = partition["PartitionName"]
    problems = []
    limit = minutes(partition.get("MaxTime", ""))
    if limit is not None and params["timeout_min"] > limit:
        problems.append(
            f"hydra.launcher.timeout_min must not exceed the {limit} min of partition {name},"
            f" but got {params['timeout_min']}; workers are requeued, so a lower one will do"
        )
    nodes = call(
        "sinfo", "--noheader", "--Node", f"--partition={name}", "--Format=CPUs:|,Memory:|,Gres:|"
    )
    rows = [line.split("|") for line in nodes.splitlines() if line.count("|") >= 3]
    n_gpus = max((count_gpus(row[2]) for row in rows), default=0)
    n_cpus = max((int(row[0]) for row in rows), default=0)
    mem_gb = max((int(row[1]) / 1024 for row in rows), default=0)
    for key, asked, most in (
        *((key, n, n_gpus) for key, n in gpus_asked(params).items()),
        ("cpus_per_task", params.get("cpus_per_task"), n_cpus),
        ("mem_gb", params.get("mem_gb"), mem_gb),
    ):
        if asked and asked > most:
            problems.append(
                f"hydra.launcher.{key} must fit a node of partition {name}, whose largest has"
                f" {most:g}, but got {asked}; lower it or choose another partition"
            )
    return problems


def probe(cfg: DictConfig, folder: Path) -> list[str]:
    """Ask from a compute node for the shared folder, the study database and MLflow.

    Waits while the job is in the queue, but not for ever: a full cluster is no fault.

    Args:
        cfg: the composed configuration; the probe runs as a worker of it would.
        folder: of the study; where it is not there yet, its nearest parent that is stands for it.

    Raises:
        LzsweepError: the job cannot be submitted.
    """
    from submitit.core.utils import FailedJobError

    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    own = there / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        own.mkdir()
    except OSError as error:
        return [
            f"the study's folder must be writable, but {there} is not: {error.strerror};"
            " change to another folder or set hydra.sweep.dir"
        ]
    params = {k: v for k, v in cfg.hydra.launcher.items() if k != "_target_"}
    executor = Workers(**{**params, "submitit_folder": str(own / "%j")}).executor()
    executor.update_parameters(timeout_min=PROBE_MIN, name="lzsweep-probe")
    # Unresolved, because a password may come from the environment and this goes into a file.
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    job = None
    try:
        mark = own / "mark"
        job = executor.submit(
            look_around, str(mark), raw["study"]["storage"], raw["tracking"]["uri"]
        )
        return _await(job, mark)
    except FailedJobError as error:
        raise LzsweepError(f"a probe must run first, but: {told(str(error))}") from error
    finally:
        if job is not None:
            with suppress(LzsweepError):
                cancel([job.job_id])
        shutil.rmtree(own, ignore_errors=True)


def _await(job: Any, mark: Path) -> list[str]:
    result: Path = job.paths.result_pickle
    began = time.monotonic()
    while not _appears(result, QUERY_S):
        state = queue([job.job_id]).get(job.job_id)
        if state == "PENDING" and time.monotonic() - began > PROBE_PATIENCE_S:
            _logger.warning(
                "the probe still waits in the queue, so nothing was asked from a compute node"
            )
            return []
        if state is None and not _appears(result, SHOWN_S):
            return [
                f"a job on a compute node must end well, but the probe {job.job_id} left no result"
                f" in {mark.parent}: {_last_words(job)}; start in a folder that all nodes share"
            ]
    problems: list[str] = job.result()
    if not _appears(mark, SHOWN_S):
        problems.append(
            f"the folder must be shared with the compute nodes, but what one wrote into"
            f" {mark.parent} is not seen here; start in a shared folder"
        )
    return problems


def _appears(path: Path, patience_s: float) -> bool:
    """Wait for what another machine writes; whether it came."""
    give_up = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > give_up:
            return False
        time.sleep(LOOK_S)
        with suppress(OSError):
            os.listdir(path.parent)  # noqa: PTH208  # makes some clients ask their server again
    return True


def _last_words(job: Any) -> str:
    log = Path(str(job.paths.stdout))
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it wrote nothing"


def look_around(mark: str, storage: str, uri: str) -> list[str]:
    """What is wrong where this process runs; run by the probe's job on a compute node.

    Args:
        mark: a file to write.
        storage: URL of the study database; may be an interpolation of the environment.
        uri: of the MLflow server; the same.
    """
    import platform

    from lzsweep.sweep.storage import open_storage
    from lzsweep.tracking.runs import check_server

    here = f"from compute node {platform.node()}"
    problems = []
    try:
        Path(mark).touch()
    except OSError as error:
        problems.append(
            f"{Path(mark).parent} must be writable {here}, but {error.strerror};"
            " start in a shared folder"
        )
    for check, address in ((open_storage, storage), (check_server, uri)):
        try:
            check(str(OmegaConf.create({"address": address}).address))
        except LzsweepError as error:
            problems.append(f"{here}, {error}")
    return problems


def gpus_asked(params: Mapping[str, Any]) -> dict[str, int]:
    """The launcher's parameters that ask for GPUs of a node -> how many each of them asks for."""
    n_tasks = params.get("tasks_per_node") or 1
    asked = {
        "gpus_per_node": params.get("gpus_per_node") or 0,
        "gres": count_gpus(params.get("gres") or ""),
        "gpus_per_task x tasks_per_node": (params.get("gpus_per_task") or 0) * n_tasks,
    }
    return {key: n for key, n in asked.items() if n}


def count_gpus(gres: str) -> int:
    """GPUs in a text of generic resources: `gpu:a100:4(S:0-1),shard:8` has 4, `gpu:a100` has 1."""
    words = [word.split(":") for word in re.sub(r"\(.*?\)", "", gres).split(",")]
    return sum(int(w[-1]) if w[-1].isdigit() else 1 for w in words if w[0] == "gpu")


def minutes(text: str) -> int | None:
    """Minutes of a time limit as Slurm writes it (`1-12:00:00`, `30:00`, `UNLIMITED`)."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, mins, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + mins


def _fields(line: str) -> dict[str, str]:
    return {k: v for k, _, v in (word.partition("=") for word in line.split()) if v}

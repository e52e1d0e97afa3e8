"""All that knows Slurm: workers as jobs, the queue, and being such a job oneself.

The launcher is the stock one with another `launch`: the same executor and parameters, but it
returns as soon as Slurm has the jobs, since the study itself tells how they fare. Everybody who
watches asks `squeue` once for all jobs, and not more often than every `QUERY_S` seconds.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import tenacity
from hydra.core.singleton import Singleton
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf

from lzsweep.errors import LzsweepError, UserError

QUERY_S = 30.0
"""Least time between two questions to the queue."""
SUBMIT_PATIENCE_S = 900.0
"""Time a submission is retried while Slurm has no room for it."""
COMMAND_S = 60.0
"""Time that one command of Slurm's may take."""
MAX_REQUEUES = 1000
"""How often a job is requeued after its time limit: always, as a worker goes on where it was."""

# What passes, in the words of sbatch; everything else that it refuses is refused for good.
_PASSING = re.compile(
    r"MaxSubmit|MaxJobsAccrue|Job violates accounting/QOS policy \(job submit limit|"
    r"temporarily|Unable to contact slurm controller|Socket timed out|timed out|"
    r"Connection refused|Zero Bytes|Slurm controller is not responding|"
    r"Slurm backup controller in standby",
    re.IGNORECASE,
)
_NEVER = re.compile(r"MaxWall|MaxCpu|MaxTRES|MaxNode|MinTRES|time limit is invalid", re.IGNORECASE)

_logger = logging.getLogger(__name__)


def is_slurm(target: str) -> bool:
    """Whether a launcher's `_target_` puts jobs into a Slurm queue."""
    return target.rpartition(".")[2] == "SlurmLauncher"


class Workers(SlurmLauncher):
    """The stock launcher, but submitting returns."""

    def submit(self, job_overrides: Sequence[Sequence[str]]) -> Iterator[str]:
        """Put one worker a list of overrides into the queue.

        As one job array, or as several where the site's MaxArraySize is smaller. What Slurm
        refuses for now (limits reached, no answer) is tried again for `SUBMIT_PATIENCE_S`.

        Yields:
            The id of each job or array as soon as Slurm has it, since a later one may be refused.

        Raises:
            UserError: Slurm refuses one for good.
        """
        numbered = iter(enumerate(job_overrides))
        for size in _array_sizes(len(job_overrides)):
            yield self._submit_array(list(islice(numbered, size)))

    def scripts(self, n_workers: int) -> Iterator[str]:
        """The sbatch script of each array, as it would be submitted."""
        for size in _array_sizes(n_workers):
            executor = self.executor()._executor
            if size > 1:
                executor.parameters["map_count"] = size
            yield executor._make_submission_file_text(executor._submitit_command_str, "")

    def executor(self) -> Any:
        """Submitit's executor with the parameters of `hydra.launcher`."""
        import submitit

        base = set(OmegaConf.structured(BaseQueueConf).keys())
        at_start = {"max_num_timeout", "python"}
        params = {k: v for k, v in self.params.items() if k != "submitit_folder"}
        params["max_num_timeout"] = MAX_REQUEUES
        try:
            executor = submitit.AutoExecutor(
                folder=self.params["submitit_folder"],
                cluster="slurm",
                **{f"slurm_{k}": v for k, v in params.items() if k in at_start},
            )
            executor.update_parameters(
                **{
                    k if k in base else f"slurm_{k}": v
                    for k, v in params.items()
                    if k not in at_start
                }
            )
        except (RuntimeError, ValueError, NameError) as error:
            raise UserError(
                f"hydra/launcher=slurm needs a machine that may submit to Slurm: {error};"
                " go to the login node, or use hydra/launcher=local"
            ) from error
        return executor

    def _submit_array(self, numbered: Sequence[tuple[int, Sequence[str]]]) -> str:
        from submitit.core.utils import FailedJobError

        executor = self.executor()
        jobs = [
            (list(overrides), "hydra.sweep.dir", n, f"job_id_for_{n}", Singleton.get_state())
            for n, overrides in numbered
        ]
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda e: is_passing(str(e))),
            wait=tenacity.wait_random_exponential(multiplier=2, max=60),
            stop=tenacity.stop_after_delay(SUBMIT_PATIENCE_S),
            before_sleep=lambda state: print(
                "Slurm does not take the workers yet, trying again:",
                told(str(state.outcome.exception()) if state.outcome else ""),
                file=sys.stderr,
                flush=True,
            ),
            reraise=True,
        )
        try:
            submitted = retrying(executor.map_array, self, *zip(*jobs, strict=True))
        except FailedJobError as error:
            raise UserError(
                f"Slurm must take the workers, but sbatch says: {told(str(error))};"
                " correct hydra.launcher.* (see `lzsweep doctor hydra/launcher=slurm`) or lower"
                " worker.count"
            ) from error
        return str(submitted[0].job_id).partition("_")[0]


def _array_sizes(n_workers: int) -> list[int]:
    most = max_array_size()
    n_full, rest = divmod(n_workers, most)
    return [most] * n_full + [rest] * (rest > 0)


def is_passing(text: str) -> bool:
    """Whether what sbatch says may be otherwise in a while."""
    return bool(_PASSING.search(text)) and not _NEVER.search(text)


def told(text: str) -> str:
    """What a command of Slurm's said, in one line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Traceback", "File "))]
    return "; ".join(dict.fromkeys(said[-3:]))


def call(*command: str) -> str:
    """Run a command of Slurm's and return what it prints.

    Raises:
        LzsweepError: it is not there, takes too long or fails.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except FileNotFoundError as error:
        raise UserError(
            f"Slurm's commands must be installed here, but there is no {command[0]};"
            " go to the login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LzsweepError(f"{command[0]} did not answer for {COMMAND_S:g} s") from error
    if done.returncode != 0:
        raise LzsweepError(f"{command[0]} says: {told(done.stderr or done.stdout)}")
    return done.stdout


def setting(name: str) -> str:
    """A setting of the cluster, as `scontrol show config` tells it; empty if it tells none."""
    found = re.search(rf"^{name}\s*=\s*(.*)$", call("scontrol", "show", "config"), re.MULTILINE)
    return found[1].strip() if found else ""


def max_array_size() -> int:
    """How many tasks a job array may have on this cluster, at least 1."""
    size = setting("MaxArraySize")
    return max(1, int(size)) if size.isdigit() else 1001


def queue(ids: Collection[str]) -> dict[str, str]:
    """The tasks of these jobs that are queued or run, by one question for all.

    Returns:
        Id of the task (`12_0`, or `12` where it is no array) -> state (`PENDING`, `RUNNING`, ...).

    Raises:
        LzsweepError: the queue does not answer.
    """
    text = call(
        "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%F|%i|%T"
    )
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return {task: state for job, task, state in rows if job in ids}


def cancel_pending(ids: Collection[str]) -> None:
    """Take out of the queue what has not begun yet.

    Raises:
        LzsweepError: the queue does not answer.
    """
    if known := _known(ids):
        call("scancel", "--state=PENDING", *known)


def cancel(ids: Collection[str]) -> None:
    """End jobs, whatever they do.

    Raises:
        LzsweepError: the queue does not answer.
    """
    if known := _known(ids):
        call("scancel", *known)


def _known(ids: Collection[str]) -> list[str]:
    """Jobs of which something is left; one that Slurm has forgotten would fail all of them."""
    return sorted({task.partition("_")[0] for task in queue(ids)}) if ids else []


def wait(ids: Collection[str], is_over: Callable[[], bool], poll_s: float = 1.0) -> None:
    """Wait until a study is over, or none of its jobs is left to go on with it."""
    asked = time.monotonic()
    while not is_over():
        time.sleep(poll_s)
        if time.monotonic() - asked < QUERY_S:
            continue
        asked = time.monotonic()
        try:
            if not queue(ids):
                return
        except LzsweepError as error:
            _logger.warning("%s; the workers go on", error)


@dataclass(frozen=True)
class Job:
    """The Slurm job that this process is.

    Attributes:
        id: of the task, as people type it: `12_0`.
        ends: when its time is over, in seconds since the epoch; None where nobody says.
    """

    id: str
    ends: float | None

    @property
    def array(self) -> str:
        """The id under which it was submitted."""
        return self.id.partition("_")[0]

    def is_kept(self) -> bool:
        """Whether Slurm still lets it run: a job that is requeued or cancelled it does not."""
        try:
            state = call("squeue", "--noheader", f"--jobs={self.id}", "--format=%T").strip()
        except LzsweepError as error:
            _logger.warning("%s", error)
            return False
        return state == "RUNNING"


def this_job() -> Job | None:
    """The job that submitit made of this process; None where it is no job of Slurm's."""
    raw = os.environ.get("SLURM_JOB_ID")
    if raw is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    own = f"{array}_{task}" if array else raw
    return Job(own, float(end) if end else _end_of(own))


def _end_of(job: str) -> float | None:
    # Older versions do not set SLURM_JOB_END_TIME.
    try:
        text = call("squeue", "--noheader", f"--jobs={job}", "--format=%e").strip()
        return datetime.fromisoformat(text).timestamp()
    except (LzsweepError, ValueError) as error:
        _logger.warning("when this job's time is over is unknown: %s", error)
        return None

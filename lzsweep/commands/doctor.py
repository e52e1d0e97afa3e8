"""`lzsweep doctor`: is this machine, and the cluster, ready for sweeps?"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from omegaconf import DictConfig

from lzsweep.commands import Format, Output, app, compose_sweep, print_json
from lzsweep.errors import LzsweepError
from lzsweep.sweep.probe import limit_problems, probe
from lzsweep.sweep.report import make_console
from lzsweep.sweep.slurm import call, is_slurm
from lzsweep.sweep.storage import is_there, open_storage, shown_url
from lzsweep.tracking.client import redact
from lzsweep.tracking.runs import check_server

MIN_FREE_GB = 5.0
"""Free space below which a sweep's checkpoints may not fit."""
_TORCH_S = 120.0
_ASK_TORCH = (
    "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda,"
    " torch.cuda.is_available(), torch.cuda.device_count()]))"
)


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    ok: bool
    text: str


@app.command(
    epilog="Examples:  lzsweep doctor   |   lzsweep doctor hydra/launcher=slurm"
    " hydra.launcher.partition=gpu"
)
def doctor(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="The launcher and other settings of a sweep.")
    ] = None,
    format: Output = Format.table,
) -> None:
    """Check GPU, driver, torch, disk, MLflow, study database and, with a Slurm launcher, these."""
    cfg = compose_sweep(overrides or [])
    findings = [*_machine(cfg), *(_cluster(cfg) if is_slurm(_target(cfg)) else [])]
    if format is Format.json:
        print_json([asdict(f) for f in findings])
    else:
        for finding in findings:
            mark = "ok   " if finding.ok else "WRONG"
            make_console().print(
                f"{mark} {finding.check}: {finding.text}", soft_wrap=True, markup=False
            )
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


def _target(cfg: DictConfig) -> str:
    return str(cfg.hydra.launcher._target_)


def _machine(cfg: DictConfig) -> Iterator[Finding]:
    yield _gpus(cfg)
    yield _torch()
    yield _disk(Path.cwd())
    yield _answers(
        "study database", shown_url(cfg.study.storage), lambda: _see_database(cfg.study.storage)
    )
    yield _answers("MLflow", redact(cfg.tracking.uri), lambda: check_server(cfg.tracking.uri))


def _gpus(cfg: DictConfig) -> Finding:
    import pynvml

    wanted = str(cfg.trainer.accelerator)
    is_wanted = wanted in ("gpu", "cuda") and not is_slurm(_target(cfg))
    try:
        pynvml.nvmlInit()
        n_gpus = pynvml.nvmlDeviceGetCount()
        names = {
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(n)) for n in range(n_gpus)
        }
        driver = pynvml.nvmlSystemGetDriverVersion()
        return Finding("GPU", True, f"{n_gpus} ({', '.join(sorted(names))}), driver {driver}")
    except pynvml.NVMLError as error:
        if is_wanted:
            text = f"none here ({error}), but trainer.accelerator={wanted}; set trainer=cpu"
            return Finding("GPU", False, text)
        return Finding("GPU", True, f"none here, trainings run on the CPU ({error})")


def _torch() -> Finding:
    # In a process of its own: a broken build may crash, and its share of a GPU goes at once.
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True, text=True, timeout=_TORCH_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Finding("torch", False, f"importing it took more than {_TORCH_S:g} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return Finding("torch", False, f"{last}; install it again: make install")
    version, cuda, is_available, n_gpus = json.loads(done.stdout.splitlines()[-1])
    n_there = len(_devices())
    text = f"{version}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}, sees {n_gpus} GPUs"
    if n_there and not is_available:
        return Finding("torch", False, f"{text} of {n_there}; install a build for this driver")
    return Finding("torch", True, text)


def _devices() -> list[str]:
    return sorted(str(p) for p in Path("/dev").glob("nvidia[0-9]*"))


def _disk(folder: Path) -> Finding:
    free_gb = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Finding("disk", False, f"{folder} must be writable; change to another folder")
    text = f"{free_gb:.0f} GB free in {folder}"
    if free_gb < MIN_FREE_GB:
        return Finding("disk", False, f"{text}, but checkpoints want {MIN_FREE_GB:g}; make room")
    return Finding("disk", True, text)


def _see_database(url: str) -> None:
    if is_there(url):
        open_storage(url)


def _answers(check: str, place: str, ask: Callable[[], object]) -> Finding:
    try:
        ask()
    except LzsweepError as error:
        return Finding(check, False, str(error))
    return Finding(check, True, place)


def _cluster(cfg: DictConfig) -> Iterator[Finding]:
    try:
        version = call("sbatch", "--version").strip()
        problems = limit_problems(cfg.hydra.launcher)
    except LzsweepError as error:
        yield Finding("cluster", False, str(error))
        return
    yield Finding("cluster", not problems, "; ".join(problems) or version)
    if problems or not cfg.worker.probe:
        return
    try:
        problems = probe(cfg, Path(cfg.hydra.sweep.dir).absolute())
    except LzsweepError as error:
        problems = [str(error)]
    text = "the folder, the study database and MLflow are reached"
    yield Finding("compute node", not problems, "; ".join(problems) or text)

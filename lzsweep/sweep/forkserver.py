"""The process that trials are forked from: it has torch and Lightning imported, once a worker."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from lzsweep.errors import LzsweepError
from lzsweep.imports import COMPILER

if TYPE_CHECKING:  # it takes longer to import than all of the rest
    from omegaconf import DictConfig

DEATH_S = 30.0
"""Time that a killed process has to be gone; one that hangs in the kernel is left to it."""

_lock = threading.Lock()
"""Held to start a process and to read an exit code: a start looks at the exit codes of all others,
and reading one twice loses it."""
_preloaded: list[str] = []
"""What the forkserver imports; nothing where none was started."""
_owner = 0
"""The process that started it, and not one that was forked from that."""
_is_used = False
"""Whether trials may have been forked from it."""


def start_forkserver(*, compiles: bool = False) -> None:
    """Start importing torch and Lightning in the process that trials are forked from.

    Returns at once; the imports take their seconds beside whatever comes next. One that was
    started before stays, unless it lacks the compiler and nobody used it yet.

    Args:
        compiles: trials use torch's compiler, which is imported for all of them then.
    """
    global _owner
    context = multiprocessing.get_context("forkserver")
    modules = ["lzsweep.sweep.preload", *([f"{COMPILER}.eval_frame"] if compiles else [])]
    if not set(modules) <= set(_preloaded) and not _is_used:
        end_unused_forkserver()
        _preloaded[:] = modules
        _owner = os.getpid()
        atexit.register(_kill)
    context.set_forkserver_preload(list(_preloaded))
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # Children are told this process's own, and nobody else knows joblib's.
        multiprocessing.set_start_method("forkserver", force=True)
    forkserver.ensure_running()


def uses_compiler(cfg: DictConfig) -> bool:
    """Whether all trials of a configuration compile, as `module.compile` says it for ours."""
    from omegaconf import OmegaConf

    return OmegaConf.select(cfg, "module.compile") is True


def end_unused_forkserver() -> None:
    """End the forkserver that this process has started, if none of its trials needs it."""
    if not _is_used and _kill():
        _preloaded.clear()
        with suppress(ChildProcessError):  # it was dead already
            forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _kill() -> bool:
    # It hears of the end only after its imports, and would hold the terminal until then.
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if not pid or os.getpid() != _owner:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def start(process: BaseProcess) -> None:
    """Start a process; threads that do so, and read exit codes, do it by these three functions."""
    with _lock:
        process.start()


def exit_code(process: BaseProcess, timeout_s: float = 0.0) -> int | None:
    """Wait for a process's end, for a limited time; its exit code, None while it is there."""
    if timeout_s and wait([process.sentinel], timeout_s):
        with _lock:
            process.join(1.0)  # one that is no fork is dead a moment after its pipe is closed
    with _lock:
        return process.exitcode


def kill(process: BaseProcess) -> bool:
    """End a process now; whether it is gone."""
    with _lock:
        if process.exitcode is not None:
            return True
        process.kill()
    return exit_code(process, DEATH_S) is not None


def prove_preloaded() -> None:
    """End with exit code 0 if the forkserver has imported what trials need."""
    sys.exit(not {"torch", "pytorch_lightning", "lzsweep.train.fit"} <= set(sys.modules))


def small_context() -> BaseContext:
    """How to start a process that needs no torch: forked where the forkserver runs, else fresh.

    It would start a forkserver without the imports, and trials forked from that would fail.
    """
    return multiprocessing.get_context("forkserver" if _preloaded else "spawn")


def await_forkserver() -> None:
    """Wait until trials can be forked.

    Raises:
        LzsweepError: the imports failed; the forkserver itself swallows their errors.
    """
    global _is_used
    _is_used = True
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=prove_preloaded, name="proof of the imports")
    start(process)
    process.join()
    if process.exitcode != 0:
        raise LzsweepError(
            "a trial's process must have torch and Lightning imported, but the imports failed;"
            f" see why: {sys.executable} -c 'import lzsweep.sweep.preload'"
        )

"""The process that trials are forked from: it has torch and Lightning imported, once a worker."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

from lzsweep.errors import LzsweepError
from lzsweep.sweep.trial import prove_preloaded

_started = False


def start_forkserver() -> None:
    """Start importing torch and Lightning in the process that trials are forked from.

    Returns at once; the imports take their tens of seconds beside whatever comes next.
    """
    global _started
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lzsweep.sweep.preload"])
    forkserver.ensure_running()
    _started = True


def small_context() -> BaseContext:
    """How to start a process that needs no torch: forked where the forkserver runs, else fresh.

    It would start a forkserver without the imports, and trials forked from that would fail.
    """
    return multiprocessing.get_context("forkserver" if _started else "spawn")


def await_forkserver() -> None:
    """Wait until trials can be forked.

    Raises:
        LzsweepError: the imports failed; the forkserver itself swallows their errors.
    """
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=prove_preloaded, name="proof of the imports")
    process.start()
    process.join()
    if process.exitcode != 0:
        raise LzsweepError(
            "a trial's process must have torch and Lightning imported, but the imports failed;"
            f" see why: {sys.executable} -c 'import lzsweep.sweep.preload'"
        )

"""The processes of a training on several devices of one machine: one a device.

They are forked from the process that trains, before it touches a GPU, and run the same training;
rank 0 is that process itself, which alone reports, records and writes. Lightning's own launchers
will not do: one types the command line once more, which here is a sweep, or a second record of
the run; the other leaves who knows the run without the exceptions of its training.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from lzsweep.errors import LzsweepError
from lzsweep.train.environment import count_devices, is_started_outside
from lzsweep.train.parent import die_with_parent

GRACE_S = 30.0
"""Time that the others have to end after this process, and it after one of them."""
DEATH_S = 5.0
"""Time between the end of a process's connections and its own."""

_BY_LIGHTNING = ("fork", "spawn", "notebook")

_fork = multiprocessing.get_context("fork")


def n_processes(trainer: Mapping[str, Any]) -> int:
    """Processes of a training that have to be started here, this one included.

    Args:
        trainer: the trainer's arguments: devices, num_nodes, strategy, accelerator.
    """
    strategy = str(trainer.get("strategy", "auto"))
    if is_started_outside(trainer) or any(word in strategy for word in _BY_LIGHTNING):
        return 1
    return count_devices(trainer)


@contextmanager
def companions(n: int, follow: Callable[[], object]) -> Iterator[None]:
    """Fork the processes of the other devices for the time of the block.

    Args:
        n: processes of the training, this one included; 1 forks none.
        follow: what they do: the same training.

    Raises:
        Exception: what one of them raised, where this process only heard that it was gone.
        LzsweepError: one of them was killed.
    """
    if n == 1:
        yield
        return
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "NODE_RANK": "0",
        "LOCAL_RANK": "0",
    }
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    heard, telling = _fork.Pipe(duplex=False)
    others = [
        _fork.Process(target=_follow, args=(rank, follow, telling), name=f"rank {rank}")
        for rank in range(1, n)
    ]
    over = threading.Event()
    try:
        for process in others:
            process.start()
        telling.close()
        threading.Thread(target=_end_with, args=(others, over), name="ranks", daemon=True).start()
        yield
        for process in others:
            process.join(GRACE_S)
    except RuntimeError as error:  # what torch makes of a peer that is gone
        if fault := _fault(others, heard):
            raise fault from error
        raise
    finally:
        over.set()
        for process in others:
            if process.pid is not None:  # all were started
                process.kill()
                process.join()
        _leave_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _follow(rank: int, follow: Callable[[], object], telling: Connection) -> None:
    die_with_parent()
    os.environ["LOCAL_RANK"] = str(rank)
    try:
        follow()
    except BaseException as error:
        error.add_note(f"in the process of rank {rank}:\n{traceback.format_exc()}")
        try:
            telling.send(error)
        except Exception:  # what cannot be pickled
            telling.send(LzsweepError(f"{type(error).__name__}: {error}"))
        sys.exit(1)
    finally:
        _leave_group()


def _fault(others: Sequence[ForkProcess], heard: Connection) -> BaseException | None:
    """Why one of the others is gone, if one is gone."""
    # Who fails says so before its connections end; this process's own fault leaves them waiting.
    with suppress(EOFError, OSError):  # all of them are gone
        if heard.poll(DEATH_S):
            error: BaseException = heard.recv()
            return error
    ended = wait([process.sentinel for process in others], timeout=DEATH_S)
    for process in [process for process in others if process.sentinel in ended]:
        process.join(DEATH_S)  # the kernel closes its files, of its sentinel too, before its death
        if process.exitcode is not None and process.exitcode < 0:
            number = signal.Signals(-process.exitcode).name
            return LzsweepError(f"the process of {process.name} was killed by signal {number}")
    return None


def _end_with(others: Sequence[ForkProcess], over: threading.Event) -> None:
    """End this process if another rank is gone: on GPUs its wait for that one may never end."""
    left = list(others)
    while left and not over.is_set():
        ready = wait([process.sentinel for process in left], timeout=1.0)
        for process in [p for p in left if p.sentinel in ready]:
            left.remove(process)
            if (code := _await_code(process)) and not over.wait(GRACE_S):
                print(f"{process.name} ended with exit code {code}", file=sys.stderr)
                os._exit(1)


def _await_code(process: ForkProcess) -> int | None:
    """The exit code of a process about to end, which stays there for the main thread to reap."""
    # Of two threads that reap a process, one does not hear how it ended.
    assert process.pid is not None
    try:
        end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # reaped
        return process.exitcode
    assert end is not None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

"""System metrics: what the machine, a trial's processes and its GPUs do, into the journal.

Names, all below `system/`: `cpu_percent` (of the whole machine, 0-100), `memory_gb` (used),
`process_cpu_percent` (100 = one core) and `process_memory_gb` (of the process and its
descendants), and for the i-th of the trial's GPUs `gpu_<i>_percent`, `gpu_<i>_memory_gb`,
`gpu_<i>_power_w`. The step is the number of whole seconds since the run began. 1 GB is 2**30
bytes.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from lzsweep.tracking.journal import Journal

_GB = 2**30
_logger = logging.getLogger(__name__)


class SystemSampler:
    """Samples for some runs from one daemon thread; whatever fails is left out, never raised."""

    def __init__(self, *, interval_s: float = 10.0) -> None:
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._host = _Host()
        self._watched: dict[Path, _Watched] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(
        self, folder: Path | str, *, pid: int | None = None, devices: Sequence[str] | None = None
    ) -> None:
        """Sample for the run of a journal, at once and every interval.

        Args:
            folder: Where the journal is.
            pid: The process whose tree is measured; by default this one.
            devices: Its GPUs in the form of CUDA_VISIBLE_DEVICES' entries; by default those
                named there, or all.
        """
        try:
            pid = os.getpid() if pid is None else pid
            watched = _Watched(Path(folder), pid, devices, self._host)
        except (OSError, psutil.Error) as e:
            _logger.debug("no system metrics for %s: %s", folder, e)
            return
        with self._lock:
            self._watched[Path(folder).absolute()] = watched
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="system", daemon=True)
                self._thread.start()
        self._sample(watched)

    def remove(self, folder: Path | str) -> None:
        """Sample for a run for the last time."""
        with self._lock:
            watched = self._watched.pop(Path(folder).absolute(), None)
        if watched:
            self._sample(watched)
            watched.close()

    def close(self) -> None:
        """Stop; the thread ends at its next wake-up."""
        self._stop.set()
        for folder in list(self._watched):
            self.remove(folder)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            with self._lock:  # not while sampling: a driver may take its time, and slots wait here
                all_watched = list(self._watched.values())
            for watched in all_watched:
                self._sample(watched)

    def _sample(self, watched: _Watched) -> None:
        try:
            watched.sample()
        except Exception as e:  # A measurement must not cost a trial.
            _logger.debug("no system metrics for %s: %r", watched.journal.folder, e)


class _Host:
    """The whole machine, measured once for all runs that ask within half a second."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # Each answer is of the time since the call before.
        self._at_s = time.monotonic()
        self._values: dict[str, float] = {}

    def values(self) -> dict[str, float]:
        now = time.monotonic()
        if now - self._at_s > 0.5:
            self._at_s = now
            self._values = {
                "system/cpu_percent": psutil.cpu_percent(),
                "system/memory_gb": psutil.virtual_memory().used / _GB,
            }
        return self._values


class _Watched:
    def __init__(self, folder: Path, pid: int, devices: Sequence[str] | None, host: _Host) -> None:
        self._process = psutil.Process(pid)  # first, for it may be gone
        self.journal = Journal(folder)
        self._host = host
        self._gpus = _open_gpus(devices)
        self._cpu_s = 0.0
        self._at_s = 0.0
        self._lock = threading.Lock()
        self._is_closed = False

    def sample(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            values = self._host.values() | self._process_values()
            for i, gpu in enumerate(self._gpus):
                for name, value in _gpu_values(gpu).items():
                    values[f"system/gpu_{i}_{name}"] = value
            seconds = int(time.time() - self.journal.began_ms / 1000)
            self.journal.metrics(seconds, values)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self.journal.close()

    def _process_values(self) -> dict[str, float]:
        cpu_s, memory = 0.0, 0
        try:
            for process in (self._process, *self._process.children(recursive=True)):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                memory += process.memory_info().rss
        except psutil.NoSuchProcess:
            return {}
        now = time.monotonic()
        values = {"system/process_memory_gb": memory / _GB}
        if self._at_s and now > self._at_s and cpu_s >= self._cpu_s:
            percent = 100 * (cpu_s - self._cpu_s) / (now - self._at_s)
            values["system/process_cpu_percent"] = percent
        self._cpu_s, self._at_s = cpu_s, now
        return values


def _open_gpus(devices: Sequence[str] | None) -> list[Any]:
    """NVML handles of GPUs; none where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is None and visible is not None:
        devices = [d.strip() for d in visible.split(",") if d.strip()]
    if devices is not None and not devices:
        return []
    try:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        if devices is None:
            devices = [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            pynvml.nvmlDeviceGetHandleByIndex(int(d))
            if d.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(d)
            for d in devices
        ]
    except Exception as e:  # No package, driver or such device; pynvml has its own error tree.
        _logger.debug("no GPU metrics: %s", e)
        return []


def _gpu_values(handle: Any) -> dict[str, float]:
    pynvml: Any = importlib.import_module("pynvml")
    questions: dict[str, Callable[[], Any]] = {
        "percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_gb": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / _GB,
        "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
    values: dict[str, float] = {}
    for name, ask in questions.items():
        try:
            values[name] = float(ask())
        except pynvml.NVMLError:  # A share of a GPU knows less than a whole one.
            continue
    return values

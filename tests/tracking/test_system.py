from __future__ import annotations

import sys
import threading
import time
import types
from pathlib import Path

import pytest

from lzsweep.tracking.journal import JOURNAL_NAME, Journal, read_records
from lzsweep.tracking.system import SystemSampler, _Watched


def _values(folder: Path) -> list[dict[str, float]]:
    found = (r for r, _ in read_records(folder / JOURNAL_NAME))
    return [r["values"] for r in found if r["type"] == "metrics"]


def test_sampler_writes_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with Journal(tmp_path, clock=lambda: time.time() - 100) as journal:
        journal.start(experiment="e", name="n")
    sampler = SystemSampler(interval_s=0.3)
    sampler.add(tmp_path, devices=[])
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        sum(range(1000))
    sampler.close()
    n_lines = len(_values(tmp_path))
    merged: dict[str, float] = {}
    for values in _values(tmp_path):
        merged |= values
    assert set(merged) == {
        "system/cpu_percent",
        "system/memory_gb",
        "system/process_cpu_percent",
        "system/process_memory_gb",
    }
    assert 0 < merged["system/process_memory_gb"] < merged["system/memory_gb"] * 10
    assert merged["system/process_cpu_percent"] > 5
    steps = [r["step"] for r, _ in read_records(tmp_path / JOURNAL_NAME) if "step" in r]
    assert 100 <= max(steps) <= 110
    time.sleep(0.5)
    assert len(_values(tmp_path)) == n_lines >= 2


def test_gpus_of_the_trial_are_numbered_from_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for NVIDIA's library, which needs a GPU.
    nvml = types.ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def power(handle: str) -> int:
        if "MIG" in handle:
            raise NVMLError("not supported")
        return 300_000

    members = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda i: f"index {i}",
        "nvmlDeviceGetHandleByUUID": lambda u: f"uuid {u}",
        "nvmlDeviceGetUtilizationRates": lambda h: types.SimpleNamespace(gpu=90),
        "nvmlDeviceGetMemoryInfo": lambda h: types.SimpleNamespace(used=2 * 2**30),
        "nvmlDeviceGetPowerUsage": power,
    }
    for name, member in members.items():
        setattr(nvml, name, member)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, MIG-abc")
    sampler = SystemSampler()
    sampler.add(tmp_path)
    sampler.close()
    gpu = {k: v for k, v in _values(tmp_path)[0].items() if "gpu" in k}
    assert gpu == {
        "system/gpu_0_percent": 90,
        "system/gpu_0_memory_gb": 2,
        "system/gpu_0_power_w": 300,
        "system/gpu_1_percent": 90,
        "system/gpu_1_memory_gb": 2,
    }


def test_a_driver_that_takes_its_time_holds_up_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()
    sample = _Watched.sample

    def wait(self: _Watched) -> None:
        if self.journal.folder.name == "slow" and threading.current_thread().name == "system":
            asked.set()
            assert go_on.wait(60)
        sample(self)

    monkeypatch.setattr(_Watched, "sample", wait)
    sampler = SystemSampler(interval_s=0.01)
    sampler.add(tmp_path / "slow", devices=[])
    assert asked.wait(60)
    other = threading.Thread(target=lambda: sampler.add(tmp_path / "other", devices=[]))
    other.start()
    other.join(60)
    assert not other.is_alive()
    sampler.remove(tmp_path / "other")
    assert _values(tmp_path / "other")
    go_on.set()
    sampler.close()


def test_nothing_that_fails_is_raised(tmp_path: Path) -> None:
    sampler = SystemSampler(interval_s=0.01)
    (tmp_path / "file").write_text("")
    sampler.add(tmp_path / "file" / "below")
    sampler.add(tmp_path / "a", pid=2**22 + 1)
    sampler.add(tmp_path / "b", devices=["no such device"])
    sampler.remove(tmp_path / "never added")
    time.sleep(0.1)
    sampler.close()
    assert _values(tmp_path / "b")

"""A training that insists on GPUs is refused where they are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pynvml
import pytest

from lzsweep.errors import UserError
from lzsweep.train import devices
from lzsweep.train.devices import check_gpus, visible_gpus


def have(monkeypatch: pytest.MonkeyPatch, n_gpus: int, mask: str | None = None) -> None:
    """Let the driver tell of so many GPUs; of none, as where there is no driver."""

    def begin() -> None:
        if not n_gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", begin)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: n_gpus)
    monkeypatch.setattr(devices, "DRIVERS", ())
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)


def test_a_mask_hides_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 3)
    assert visible_gpus() == ["0", "1", "2"]
    have(monkeypatch, 3, "2,MIG-a1b2")
    assert visible_gpus() == ["2", "MIG-a1b2"]
    have(monkeypatch, 3, "-1")
    assert visible_gpus() == []


@pytest.mark.parametrize("mask", [None, "", "0"])
def test_a_gpu_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch, mask: str | None) -> None:
    have(monkeypatch, 0, mask)
    for wanted in ("gpu", "cuda"):
        told = f"trainer.accelerator={wanted} needs a GPU, but none is here; use trainer=auto or"
        with pytest.raises(UserError, match=re.escape(told)):
            check_gpus({"accelerator": wanted, "devices": 1})
    for other in ("auto", "cpu", "tpu"):
        check_gpus({"accelerator": other, "devices": 8})


def test_a_gpu_that_is_not_counted_but_has_a_driver_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    have(monkeypatch, 0)
    (tmp_path / "kfd").touch()
    monkeypatch.setattr(devices, "DRIVERS", (str(tmp_path / "kfd"),))
    check_gpus({"accelerator": "gpu", "devices": 1})


def test_gpus_that_are_hidden_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2, "-1")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=-1 hides those that are here"):
        check_gpus({"accelerator": "gpu"})


@pytest.mark.parametrize("devices", [3, "3", [0, 1, 2], "0,1,2"])
def test_more_gpus_than_there_are_is_told(monkeypatch: pytest.MonkeyPatch, devices: Any) -> None:
    have(monkeypatch, 2)
    with pytest.raises(UserError, match=r"got 3 and there are 2; set trainer\.devices=2 or"):
        check_gpus({"accelerator": "gpu", "devices": devices})
    for enough in ("auto", -1, "-1", 1, "2", [0, 1], "0,", "0,1"):
        check_gpus({"accelerator": "gpu", "devices": enough})

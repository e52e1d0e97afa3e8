"""Slots: devices shared out, an existing mask respected, CPU threads divided."""

from __future__ import annotations

import os

import pytest

from lzsweep.errors import UserError
from lzsweep.sweep.slots import devices_per_trial, find_slots


def shown(
    monkeypatch: pytest.MonkeyPatch, mask: str, slots: str, per_device: int, per_trial: int = 1
) -> list[tuple[str | None, int, float]]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return [(s.device, s.threads, s.share) for s in find_slots(slots, per_device, per_trial)]


def test_each_visible_device_is_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, "3,5", "auto", 1) == [("3", 4, 1.0), ("5", 4, 1.0)]
    gpu, mig = "GPU-8932f937", "MIG-a1b2"
    assert [d for d, *_ in shown(monkeypatch, f"{gpu},{mig}", "auto", 1)] == [gpu, mig]


def test_several_slots_share_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, "3,5", "auto", 2) == [
        ("3", 2, 0.5), ("5", 2, 0.5), ("3", 2, 0.5), ("5", 2, 0.5),
    ]  # fmt: skip


def test_a_number_of_slots_goes_round_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [d for d, *_ in shown(monkeypatch, "0,1", "3", 1)] == ["0", "1", "0"]
    assert shown(monkeypatch, "0,1", "1", 1) == [("0", 8, 1.0)]


def test_cores_are_shared_out_where_no_device_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for mask in ("", "-1"):
        assert shown(monkeypatch, mask, "auto", 4) == [(None, 1, 1.0)] * 8
        assert shown(monkeypatch, mask, "3", 1) == [(None, 2, 1.0)] * 3
        assert shown(monkeypatch, mask, "16", 1) == [(None, 1, 1.0)] * 16


@pytest.mark.parametrize("slots", ["0", "-1", "many", "1.5"])
def test_no_number_of_slots_is_refused(monkeypatch: pytest.MonkeyPatch, slots: str) -> None:
    with pytest.raises(UserError, match=f"or at least 1, .*, but got {slots} and 1"):
        shown(monkeypatch, "0", slots, 1)


def test_no_slot_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"worker\.slots_per_device at least 1"):
        shown(monkeypatch, "0", "auto", 0)


def test_a_trial_takes_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, "0,1,2,3,4", "auto", 1, 2) == [("0,1", 2, 2.0), ("2,3", 2, 2.0)]
    assert shown(monkeypatch, "0,1", "1", 1, 2) == [("0,1", 4, 2.0)]
    assert shown(monkeypatch, "0,1", "auto", 2, 2) == [("0,1", 2, 1.0)] * 2
    assert shown(monkeypatch, "", "auto", 1, 2) == [(None, 1, 1.0)] * 4


def test_more_devices_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"got 4 and there are 2; .*gpus_per_node"):
        shown(monkeypatch, "0,1", "auto", 1, 4)


def test_the_trainer_says_how_many() -> None:
    assert devices_per_trial({}) == devices_per_trial({"devices": "auto"}) == 1
    assert devices_per_trial({"devices": "2"}) == devices_per_trial({"devices": 2}) == 2
    for devices in (0, -1, "0,1", [0]):
        with pytest.raises(UserError, match=r"trainer\.devices must be a number .*, but got"):
            devices_per_trial({"devices": devices})
    with pytest.raises(UserError, match=r"trains on one machine, but trainer\.num_nodes is 2"):
        devices_per_trial({"devices": 1, "num_nodes": 2})

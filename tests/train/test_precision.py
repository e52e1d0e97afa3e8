from __future__ import annotations

import pytest
import torch

from lzsweep.train.precision import resolve_precision


def test_what_is_asked_for_is_kept() -> None:
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"


@pytest.mark.parametrize(
    ("bf16", "amx", "expected"),
    [(True, False, "bf16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true")],
)
def test_a_cpu_trains_in_bfloat16_where_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, amx: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    assert resolve_precision("auto", "cpu") == expected


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_trains_in_bfloat16_where_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, has_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)

    assert resolve_precision("auto", accelerator) == expected


def test_other_accelerators_train_in_float32() -> None:
    assert resolve_precision("auto", "tpu") == "32-true"

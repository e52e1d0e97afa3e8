"""Which number format to train in: bfloat16 where the hardware multiplies it natively."""

from __future__ import annotations

import torch

FULL = "32-true"
MIXED = "bf16-mixed"


def resolve_precision(precision: str, accelerator: str = "auto") -> str:
    """Give the precision that Lightning is told.

    Args:
        precision: one of Lightning's, which is kept, or "auto".
        accelerator: the trainer's: "auto", "gpu", "cuda", "cpu" or another.

    Returns:
        For "auto" bfloat16 autocast (weights stay float32) on GPUs that have it and on CPUs with
        AVX512-BF16 or AMX; else float32. Elsewhere bfloat16 is emulated, which is slower.
    """
    if precision != "auto":
        return precision
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if on_gpu:
        return MIXED if torch.cuda.is_bf16_supported(including_emulation=False) else FULL
    return MIXED if accelerator in ("auto", "cpu") and _cpu_multiplies_bf16() else FULL


def _cpu_multiplies_bf16() -> bool:
    # Public names for these came after torch 2.11, which must work too.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

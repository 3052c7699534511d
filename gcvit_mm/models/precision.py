"""The types that GPUs compute in."""

import torch


def half_precision() -> torch.dtype:
    """The type for mixed precision: bfloat16 where the hardware has it, or else float16.

    PyTorch emulates bfloat16 on older GPUs, which is slow, and counts it as supported.
    """
    has_bf16 = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)
    return torch.bfloat16 if has_bf16 else torch.float16


def use_tf32() -> None:
    """Allow TF32 in matrix products on GPUs, as PyTorch does in convolutions by default.

    One rule for both: products of float32 take TF32 unless NVIDIA_TF32_OVERRIDE=0 forbids it.
    ``torch.set_float32_matmul_precision`` would also lower the precision of some CPUs.
    """
    torch.backends.cuda.matmul.allow_tf32 = True

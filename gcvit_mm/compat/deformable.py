"""Changes to mmcv's deformable attention: float32 under autocast, and few waits for the GPU."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

NAME = 'mmcv.ops.multi_scale_deform_attn'


def keep_float32() -> None:
    """Keep sampling locations in float32, and read the shapes of the maps once."""
    module: Any = import_module(NAME)
    function, sample = module.MultiScaleDeformableAttnFunction, module.__dict__[_SAMPLE]
    function.apply = staticmethod(_in_float32(function.apply))
    setattr(module, _SAMPLE, _with_list_of_shapes(sample))


_SAMPLE = 'multi_scale_deformable_attn_pytorch'


def _in_float32(apply: Callable) -> Callable:
    def apply_in_float32(
        value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, *rest: Any
    ) -> Tensor:
        # mmcv casts the locations to the type of the values: in bfloat16 they would move by more
        # than half a cell on a map of 320 cells.
        dtype = torch.promote_types(value.dtype, locations.dtype)
        return apply(value.to(dtype), shapes, starts, locations, *rest).to(value.dtype)

    return apply_in_float32


def _with_list_of_shapes(sample: Callable) -> Callable:
    def sample_with_list(value: Tensor, shapes: Any, *rest: Any) -> Tensor:
        # Each element of a tensor on a GPU would be a wait for the GPU.
        return sample(value, torch.as_tensor(shapes).tolist(), *rest)

    return sample_with_list

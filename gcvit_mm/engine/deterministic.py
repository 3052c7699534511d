"""Deterministic operators for GPUs where PyTorch has none, for ``randomness.deterministic``.

``torch.use_deterministic_algorithms(True)`` raises an error in the operators below. They are
replaced for all models of the process by sums of gathered values and by matrix products, whose
gradients PyTorch computes in a fixed order. They need more memory and time.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module

import torch
from torch import Tensor


@cache
def use_deterministic_operators(device: str = 'CUDA') -> list[torch.library.Library]:
    """Replace the operators for a device, a key of PyTorch's dispatcher; once in a process."""
    libraries = []
    with warnings.catch_warnings(), suppress(Exception):  # an unusable torchvision, which is last
        warnings.filterwarnings('ignore', message='.*[Oo]verrid')
        for name, operator in OPERATORS.items():
            package, _, own = name.partition('::')
            import_module(dict(aten='torch').get(package, package))  # registers its operators
            libraries.append(torch.library.Library(package, 'IMPL'))
            libraries[-1].impl(own, operator, f'Autograd{device}')
    return libraries  # their end would restore the operators


def grid_sampler_2d(
    input: Tensor, grid: Tensor, mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """Sample a map; the gradient of a gather is a sum over sorted indices."""
    if not torch.is_grad_enabled():  # gathers need 30 times the memory, in which masks are pasted
        with torch._C._AutoDispatchBelowAutograd():
            return torch.grid_sampler_2d(input, grid, mode, padding_mode, align_corners)
    from torch._decomp.decompositions import grid_sampler_2d as by_gathers

    return by_gathers(input, grid, mode, padding_mode, align_corners)


def adaptive_avg_pool2d(input: Tensor, output_size: list[int]) -> Tensor:
    """Pool by matrix products."""
    with torch.autocast(input.device.type, enabled=False):
        rows, columns = (
            _pool_weights(size, bins, input)
            for size, bins in zip(input.shape[-2:], output_size, strict=True)
        )
        return rows @ input @ columns.t()


def _pool_weights(size: int, bins: int, like: Tensor) -> Tensor:
    at, number = (torch.arange(n, device=like.device) for n in (size, bins))
    start, stop = number * size // bins, -(-(number + 1) * size // bins)
    inside = (at >= start[:, None]) & (at < stop[:, None])
    return inside.to(like.dtype) / (stop - start)[:, None]


def nll_loss2d(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Compute the loss of a map as that of its pixels."""
    pixels = input.movedim(1, -1).flatten(0, -2)
    out, total = torch.ops.aten.nll_loss_forward(
        pixels, target.flatten(), weight, reduction, ignore_index
    )
    return out.view(target.shape) if reduction == 0 else out, total


def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Count values in bins, as whole numbers."""
    if min == max and input.numel():
        min, max = float(input.min()), float(input.max())
    if min == max:
        min, max = min - 1, max + 1
    x = input[(input >= min) & (input <= max)].double()
    places = ((x - min) * (bins / (max - min))).long().clamp(max=bins - 1)
    return torch.bincount(places, minlength=bins).to(input.dtype)


# --- RoIAlign, which is a matrix product along each axis of the map ---------------------------

MOST_ELEMENTS = 2**27
"""Numbers that ``roi_align_backward`` may use for RoIs at a time."""


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Compute the gradient of RoIAlign with respect to its map, (B, C, H, W)."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - shift).unbind(dim=1)
    axes = ((y1, y2, pooled_height, height), (x1, x2, pooled_width, width))
    out = grad.new_zeros(batch_size, channels, height, width)
    step = max(1, MOST_ELEMENTS // (channels * pooled_height * width))
    with torch.autocast(grad.device.type, enabled=False):
        for image in rois[:, 0].unique().int().tolist():  # those with RoIs
            for own in (rois[:, 0] == image).nonzero().flatten().split(step):
                rows, columns = (
                    _roi_weights(a[own], b[own], bins, size, sampling_ratio, aligned)
                    for a, b, bins, size in axes
                )
                # (K, C, P, W), then the sum over RoIs and rows of bins.
                wide = grad[own] @ columns[:, None]
                out[image] += torch.einsum('kph,kcpw->chw', rows, wide)
    return out


def _roi_weights(
    start: Tensor, stop: Tensor, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """The weight of each position of an axis in the mean of each bin of RoIs, (K, bins, size)."""
    length = stop - start if aligned else (stop - start).clamp_min(1)
    of_bin = length / bins
    counts = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else of_bin.ceil()
    most = max(1, math.ceil(float(counts.max())))
    sample = torch.arange(most, dtype=length.dtype, device=length.device)
    inner = (sample + 0.5) * of_bin[:, None] / counts[:, None].clamp_min(1)
    number = torch.arange(bins, dtype=length.dtype, device=length.device)
    at = start[:, None, None] + number[:, None] * of_bin[:, None, None] + inner[:, None]
    counted = (sample < counts[:, None])[:, None] & (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    pixel = torch.arange(size, dtype=length.dtype, device=length.device)
    weights = length.new_zeros(len(length), bins, size)
    for i in range(most):  # one sample at a time, as samples times positions need much memory
        near = (1 - (at[:, :, i, None] - pixel).abs()).clamp_min(0)
        weights += near * counted[:, :, i, None]
    return weights / counts[:, None, None].clamp_min(1)


OPERATORS: dict[str, Callable] = {
    'aten::grid_sampler_2d': grid_sampler_2d,
    'aten::_adaptive_avg_pool2d': adaptive_avg_pool2d,
    'aten::nll_loss2d_forward': nll_loss2d,
    'aten::histc': histc,
    'torchvision::_roi_align_backward': roi_align_backward,
}
"""Replacements of operators, made of operators that are deterministic, as are their gradients."""

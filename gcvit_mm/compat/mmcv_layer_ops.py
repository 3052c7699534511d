"""The layers among mmcv's operations: deformable and masked convolution, CARAFE, RoIPool.

Half precision is computed in float32. ``gcvit_mm.compat.mmcv_ops`` has the other operations.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError


def require_torchvision() -> str:
    """Import torchvision, which registers ``torch.ops.torchvision``, and return its version."""
    try:
        import torchvision

        torch.ops.torchvision.nms  # noqa: B018 - raises if the binary part is not loaded
    # A torchvision for another version of PyTorch fails in many ways.
    except Exception as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise UserError(
            'nms and roi_align need torchvision: install the release for '
            f'torch {torch.__version__} ({reason})'
        ) from error
    return torchvision.__version__


def widen(x: Tensor) -> Tensor:
    """Cast half precision to float32, which some kernels and the precision of boxes need."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Gradients with respect to the inputs of a function, which is computed again."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        output = function(*inputs)
    return torch.autograd.grad(output, inputs, grad_output.to(output.dtype))


# Deformable convolution (https://arxiv.org/abs/1703.06211, https://arxiv.org/abs/1811.11168) -----


def _deform_conv(
    sizes: dict[str, int], input: Tensor, offset: Tensor, weight: Tensor, *modulation: Tensor
) -> Tensor:
    """Torchvision's deformable convolution; ``modulation`` is a mask, and perhaps a bias."""
    require_torchvision()
    from torchvision.ops import deform_conv2d

    mask, bias = (*map(widen, modulation), None, None)[:2]
    stride, padding, dilation = (
        (sizes[vertical], sizes[horizontal])
        for vertical, horizontal in (('dH', 'dW'), ('padH', 'padW'), ('dilationH', 'dilationW'))
    )
    # It derives the groups from the shapes of its inputs.
    return deform_conv2d(
        widen(input), widen(offset), widen(weight), bias, stride, padding, dilation, mask
    )


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **sizes: int,
) -> None:
    """Deformable convolution into ``output``."""
    output.copy_(_deform_conv(sizes, input, offset, weight))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Gradients of ``deform_conv_forward`` with respect to input and offset."""
    grads = gradients(lambda *x: _deform_conv(sizes, *x, weight), (input, offset), grad_output)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **sizes: int,
) -> None:
    """Gradient of ``deform_conv_forward`` with respect to the weight, added to it."""
    # The value of the weight does not matter to its gradient.
    (grad,) = gradients(
        lambda weight: _deform_conv(sizes, input, offset, weight), (grad_weight,), grad_output
    )
    grad_weight.add_(grad.to(grad_weight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Deformable convolution with a mask into ``output``."""
    modulation = (mask, bias) if with_bias else (mask,)
    output.copy_(_modulated(sizes, output, input, offset, weight, *modulation))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Gradients of ``modulated_deform_conv_forward``."""
    inputs = (input, offset, weight, mask, bias)[: 4 + with_bias]
    grads = gradients(lambda *x: _modulated(sizes, grad_output, *x), inputs, grad_output)
    targets = (grad_input, grad_offset, grad_weight, grad_mask, grad_bias)
    for target, grad in zip(targets, grads, strict=False):
        target.copy_(grad)


def _modulated(
    sizes: dict[str, int],
    output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    *bias: Tensor,
) -> Tensor:
    # mmcv's kernel reads offsets and masks of any size as if they had the size of the output, and
    # trained weights of DyHead rely on it.
    height, width = output.shape[2:]
    offset, mask = (
        x.flatten(1)[:, : x.shape[1] * height * width].unflatten(1, (x.shape[1], height, width))
        for x in (offset, mask)
    )
    names = {'stride_h': 'dH', 'stride_w': 'dW', 'pad_h': 'padH', 'pad_w': 'padW'}
    names |= {'dilation_h': 'dilationH', 'dilation_w': 'dilationW'}
    plain = {own: sizes[name] for name, own in names.items()}
    return _deform_conv(plain, input, offset, weight, mask, *bias)


# Masked convolution (https://arxiv.org/abs/1901.03278) ------------------------------------------


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """The inputs of a convolution at some positions, into ``col`` (C kernel_h kernel_w, N)."""
    columns = F.unfold(im, (kernel_h, kernel_w), padding=(pad_h, pad_w))[0]
    width = im.shape[3] + 2 * pad_w - kernel_w + 1
    col.copy_(columns[:, mask_h_idx * width + mask_w_idx])


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write results of a convolution to their positions in ``im`` (1, C, H, W)."""
    im[0][:, mask_h_idx, mask_w_idx] = col


# CARAFE (https://arxiv.org/abs/1905.02188) ------------------------------------------------------


def _carafe(
    features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    """Weighted means of the neighbours of each pixel, for each of its enlarged pixels."""
    n, c, h, w = features.shape
    columns = F.unfold(widen(features), kernel_size, padding=kernel_size // 2)
    columns = columns.view(n, group_size, c // group_size, kernel_size**2, h, w)
    weights = widen(masks).view(n, group_size, kernel_size**2, h, scale_factor, w, scale_factor)
    return torch.einsum('ngckhw,ngkhawb->ngchawb', columns, weights).reshape(
        n, c, h * scale_factor, w * scale_factor
    )


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **sizes: int,
) -> None:
    """CARAFE into ``output``; ``rfeatures`` keeps the features for the backward pass."""
    rfeatures.copy_(features)
    output.copy_(_carafe(features, masks, **sizes))


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **sizes: int,
) -> None:
    """Gradients of ``carafe_forward``."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **sizes)


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, **sizes: int) -> None:
    """CARAFE into ``output``."""
    output.copy_(_carafe(features, masks, **sizes))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **sizes: int,
) -> None:
    """Gradients of ``carafe_naive_forward``."""
    grads = gradients(
        lambda features, masks: _carafe(features, masks, **sizes), (features, masks), grad_output
    )
    grad_input.copy_(grads[0])
    grad_masks.copy_(grads[1])


# RoIPool ----------------------------------------------------------------------------------------


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maxima of the bins of RoIs (N, 5) into ``output``, their pixels into ``argmax`` (-1: none).

    A bin has all pixels that it touches, while torchvision's RoIPool rounds RoIs to whole pixels.
    """
    height, width = input.shape[2:]
    corners = widen(rois[:, 1:])
    corners = torch.cat((corners[:, :2], corners[:, 2:] + 1), 1) * spatial_scale
    sizes = (corners[:, 2:] - corners[:, :2]) / corners.new_tensor((pooled_width, pooled_height))
    output.zero_()
    argmax.fill_(-1)
    for n, (image, corner, size) in enumerate(zip(rois[:, 0].long(), corners, sizes, strict=True)):
        if min(size) <= 0:
            continue
        columns = _bins(corner[0], size[0], pooled_width, width)
        rows = _bins(corner[1], size[1], pooled_height, height)
        for y, (top, bottom) in enumerate(rows):
            for x, (left, right) in enumerate(columns):
                if top < bottom and left < right:
                    best, place = input[image, :, top:bottom, left:right].flatten(1).max(1)
                    output[n, :, y, x] = best
                    row = torch.div(place, right - left, rounding_mode='floor') + top
                    argmax[n, :, y, x] = row * width + place % (right - left) + left


def _bins(start: Tensor, size: Tensor, count: int, limit: int) -> list[tuple[int, int]]:
    """The first pixel of each bin, and the one after the last."""
    edges = start + size * torch.arange(count + 1, device=size.device)
    first, last = edges[:-1].floor().clamp(0, limit), edges[1:].ceil().clamp(0, limit)
    return list(zip(first.int().tolist(), last.int().tolist(), strict=True))


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **sizes: Any
) -> None:
    """Gradient of ``roi_pool_forward``, added to the pixels of the maxima."""
    images, channels = rois[:, 0].long()[:, None, None, None], argmax.shape[1]
    plane = images * channels + torch.arange(channels, device=argmax.device)[:, None, None]
    places = plane * grad_input[0, 0].numel() + argmax
    kept = argmax >= 0
    total = widen(grad_input).flatten()
    total = total.index_add(0, places[kept].long(), grad_output[kept].to(total.dtype))
    grad_input.copy_(total.view_as(grad_input))


OPS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        deform_conv_forward,
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
        masked_im2col_forward,
        masked_col2im_forward,
        carafe_forward,
        carafe_backward,
        carafe_naive_forward,
        carafe_naive_backward,
        roi_pool_forward,
        roi_pool_backward,
    )
}

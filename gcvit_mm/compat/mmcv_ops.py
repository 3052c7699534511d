"""Implementations of the operations of mmcv's compiled extension.

They use torchvision's compiled NMS, RoIAlign and deformable convolution and PyTorch code, and cover
the operations that mmdet's models use. All other operations, such as those for rotated boxes, raise
an error when they are called. ``gcvit_mm.compat.mmcv_extension`` provides the operations to mmcv.
"""

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from ..errors import UserError
from . import mmcv_layer_ops
from .mmcv_extension import NAME, STAND_IN
from .mmcv_layer_ops import gradients, require_torchvision, widen


def fill(module: ModuleType) -> None:
    """Add the operations to the substitute for ``mmcv._ext``, and log it."""
    vars(module).update(_OPS, __getattr__=_missing_op)
    print_log(_describe(), logger='current', level=logging.INFO)


def implementation() -> str:
    """Describe in one line which implementation of mmcv's operations this process uses."""
    try:
        extension = importlib.import_module(NAME)
    except ImportError as error:
        return f'mmcv ops: not available: {error}'
    if getattr(extension, '__loader__', None) is not STAND_IN:
        return 'mmcv ops: compiled mmcv._ext'
    return _describe()


def _describe() -> str:
    python = 'PyTorch (deformable attention, focal loss, others)'
    try:
        compiled = f'torchvision {require_torchvision()} (nms, roi_align, deform_conv)'
        return f'mmcv ops: {compiled}, {python}'
    except UserError as error:
        return f'mmcv ops: {python}; {error}'


# Operations with the signatures of mmcv's extension, which ``mmcv.ops`` documents --------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression; half precision is computed in float32.

    Boxes whose IoU with a kept box of a higher score exceeds the threshold are removed. Of equal
    scores the first one counts as higher, on CPU and CUDA. ``offset`` is added to the sides.
    """
    require_torchvision()
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes = boxes.to(dtype)
    # Adding the offset to x2 and y2 adds it to the sides of boxes and of intersections.
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torch.ops.torchvision.nms(boxes, scores.to(dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS, which lowers the scores of overlapping boxes, into ``dets`` (N, 5).

    Returns the indices of the boxes that are kept, in the order of their lowered scores. Methods:
    0 removes boxes above the threshold, 1 multiplies their scores by 1 - IoU, and 2 all scores by
    exp(-IoU^2 / sigma).

    Source:
        Bodla et al., Soft-NMS, https://arxiv.org/abs/1704.04503
    """
    boxes, left = widen(boxes), widen(scores).clone()
    alive = torch.ones_like(left, dtype=torch.bool)
    kept: list[int] = []
    while alive.any():
        best = int(torch.where(alive, left, -torch.inf).argmax())
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], left[best]
        kept.append(best)
        alive[best] = False
        iou = _overlaps(boxes[best], boxes, offset).nan_to_num()
        if method == 2:
            left *= torch.exp(-(iou**2) / sigma)
        else:
            left = torch.where(iou >= iou_threshold, left * (1 - iou) * method, left)
        alive &= left >= min_score
    return torch.tensor(kept, dtype=torch.int64)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of each box that NMS keeps and the boxes that it suppresses, best score first."""
    boxes, order = widen(dets[:, :4]), dets[:, 4].sort(descending=True, stable=True)[1]
    groups = []
    while len(order):
        iou = _overlaps(boxes[order[0]], boxes[order], 0)
        near = iou >= iou_threshold
        near[0] = True
        groups.append(order[near].tolist())
        order = order[~near]
    return groups


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """IoU (mode 0) or intersection over the first box (mode 1) of boxes, into ``ious``."""
    boxes = widen(bboxes1) if aligned else widen(bboxes1)[:, None]
    ious.copy_(_overlaps(boxes, widen(bboxes2), offset, mode))


def _overlaps(boxes: Tensor, others: Tensor, offset: int, mode: int = 0) -> Tensor:
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    inter = (bottom_right - top_left + offset).clamp(min=0).prod(-1)
    area, other = ((b[..., 2:] - b[..., :2] + offset).prod(-1) for b in (boxes, others))
    return inter / (area + other - inter if mode == 0 else area).clamp(min=offset)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign with average pooling into ``output``; half precision is computed in float32.

    The RoIs are (N, 5): batch index, x1, y1, x2, y2; their dtype may differ from that of ``input``.
    """
    _check_pool_mode(pool_mode)
    require_torchvision()
    input = widen(input)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input,
            rois.to(input.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of ``roi_align_forward`` with respect to its input.

    The CUDA kernel adds in random order, so PyTorch refuses it under
    ``torch.use_deterministic_algorithms(True)``.
    """
    _check_pool_mode(pool_mode)
    require_torchvision()
    grad_output = widen(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois.to(grad_output.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != 1:
        raise UserError(f"mmcv op roi_align with pool_mode='max' is not available; {_CURE}")


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention by mmcv's implementation in PyTorch.

    mmcv calls it only for CUDA tensors. It needs more memory than a fused kernel; half precision is
    computed in float32. The shapes determine ``value_level_start_index``, and the batch is not
    split into ``im2col_step``.

    Source:
        Zhu et al., Deformable DETR, https://arxiv.org/abs/2010.04159
    """
    return _deformable_attention(
        value, value_spatial_shapes, sampling_locations, attention_weights
    ).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of ``ms_deform_attn_forward``, computed by running it again with autograd."""
    grads = gradients(
        lambda value, *others: _deformable_attention(value, value_spatial_shapes, *others),
        (value, sampling_locations, attention_weights),
        grad_output,
    )
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


def _deformable_attention(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    # Imported late, because importing mmcv.ops loads the operations of this module.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        widen(value), spatial_shapes, widen(sampling_locations), widen(attention_weights)
    )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of each logit (N, C) into ``output``; mmdet calls it only for CUDA tensors.

    A target outside [0, C) is background. Weights for each class are not supported.

    Source:
        Lin et al., Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002
    """
    is_target, log_p, _, q = _focal_terms(input, target, weight)
    loss = -(q**gamma) * log_p
    output.copy_(torch.where(is_target, alpha * loss, (1 - alpha) * loss))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of ``sigmoid_focal_loss_forward`` with respect to each logit."""
    is_target, log_p, p, q = _focal_terms(input, target, weight)
    grad = q**gamma * (gamma * p * log_p - q)
    grad_input.copy_(torch.where(is_target, alpha * grad, (alpha - 1) * grad))


def _focal_terms(
    input: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whether each logit is that of the target class, and log p, p, 1 - p of the correct label."""
    if weight.numel():
        raise UserError(f'mmcv op sigmoid_focal_loss with class weights is not available; {_CURE}')
    is_target = target[:, None] == torch.arange(input.shape[1], device=target.device)
    logit = widen(input)
    logit = torch.where(is_target, logit, -logit)
    return is_target, F.logsigmoid(logit), logit.sigmoid(), (-logit).sigmoid()


def get_compiler_version() -> str:
    """The text that ``mmcv.utils.collect_env`` prints instead of a version."""
    return 'not compiled (substitute from gcvit_mm)'


_CURE = (
    "it needs mmcv's compiled extension: build OpenMMLab's mmcv or onedl-mmcv from source with "
    'MMCV_WITH_OPS=1 for the installed torch'
)


def _missing_op(name: str) -> Callable:
    """``__getattr__`` of the module, as ``mmcv.ops`` looks up all operations at import."""
    if name.startswith('__'):
        raise AttributeError(f'module {NAME!r} has no attribute {name!r}')
    return functools.partial(_refuse, name)


def _refuse(op: str, /, *args: object, **kwargs: object) -> None:
    raise UserError(f'mmcv op {op} is not available; {_CURE}')


_OPS: dict[str, Callable] = {
    **mmcv_layer_ops.OPS,
    'nms': nms,
    'softnms': softnms,
    'nms_match': nms_match,
    'bbox_overlaps': bbox_overlaps,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
    'ms_deform_attn_forward': ms_deform_attn_forward,
    'ms_deform_attn_backward': ms_deform_attn_backward,
    'sigmoid_focal_loss_forward': sigmoid_focal_loss_forward,
    'sigmoid_focal_loss_backward': sigmoid_focal_loss_backward,
    'get_compiler_version': get_compiler_version,
    'get_compiling_cuda_version': get_compiler_version,
}

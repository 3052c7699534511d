"""Operations of detectors that a graph holds as one node, and their translation to ONNX."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision  # registers roi_align
from torch import Tensor

NONE = -1.0
"""The score of a box that is suppressed or absent; scores are 0 or above."""


@torch.library.custom_op('gcvit_mm::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: Tensor, score_threshold: Tensor) -> Tensor:
    """Non-maximum suppression in each set of boxes and each class.

    Args:
        boxes: (B, P, 4), sets of boxes.
        scores: (B, classes, P).
        iou_threshold: (1,); a box is suppressed if its IoU with a kept one is higher.
        score_threshold: (1,); boxes are kept if their score is higher.

    Returns:
        The scores, with ``NONE`` for boxes that are not kept.
    """
    out = torch.full_like(scores, NONE)
    for own_boxes, own_scores, own_out in zip(boxes, scores, out, strict=True):
        for score, kept in zip(own_scores, own_out, strict=True):
            inside = (score > score_threshold).nonzero()[:, 0]
            picked = torchvision.ops.nms(own_boxes[inside], score[inside], float(iou_threshold))
            kept[inside[picked]] = score[inside[picked]]
    return out


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: Tensor, score_threshold: Tensor) -> Tensor:
    return torch.empty_like(scores)


def translations() -> dict[Callable, Callable]:
    """ONNX's own operators for the operations of this module and of torchvision."""
    import onnxscript

    op: Any = onnxscript.opset20

    def nms_in_onnx(boxes: Any, scores: Any, iou_threshold: Any, score_threshold: Any) -> Any:
        most = op.Constant(value_ints=[2**31 - 1])
        kept = op.NonMaxSuppression(boxes, scores, most, iou_threshold, score_threshold)
        nothing = op.Expand(op.Constant(value_floats=[NONE]), op.Shape(scores))
        return op.ScatterND(nothing, kept, op.GatherND(scores, kept))

    def roi_align_in_onnx(
        x: Any, rois: Any, scale: float, height: int, width: int, ratio: int, aligned: bool
    ) -> Any:
        image = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=7)  # int64
        boxes = op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1)
        return op.RoiAlign(
            x,
            boxes,
            image,
            mode='avg',
            output_height=height,
            output_width=width,
            sampling_ratio=max(ratio, 0),
            spatial_scale=scale,
            coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
        )

    return {
        torch.ops.gcvit_mm.nms.default: nms_in_onnx,
        torch.ops.torchvision.roi_align.default: roi_align_in_onnx,
    }

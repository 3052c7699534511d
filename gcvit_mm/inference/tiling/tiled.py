"""The predictions for windows of an image as one for the image."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

from .tiles import Piece, Window, blend, encode, merge


def merge_objects(samples: Iterable[Any], grid: list[list[Window]], shape: tuple[int, int]) -> Any:
    """Merge the objects found in windows.

    Args:
        samples: mmdet's data sample of each window, row by row.
        grid: The windows.
        shape: Height and width of the image.

    Returns:
        A data sample of the image; masks are a list in COCO's run-length encoding.
    """
    pieces: list[Piece] = []
    flat = [window for row in grid for window in row]
    for window, sample in zip(flat, samples, strict=True):
        pieces += _pieces(sample.pred_instances, window)
    found = merge(pieces, *shape)
    instances = InstanceData(
        bboxes=torch.tensor([one.box for one in found]).reshape(-1, 4),
        scores=torch.tensor([one.score for one in found]),
        labels=torch.tensor([one.label for one in found], dtype=torch.long),
    )
    if 'masks' in sample.pred_instances:
        instances.masks = [one.mask for one in found]
    return sample.new(metainfo=_metainfo(shape), pred_instances=instances)


def _pieces(found: InstanceData, window: Window) -> Iterable[Piece]:
    offset = torch.tensor([window.x1, window.y1] * 2)
    boxes = (found.bboxes + offset).tolist()
    for i, (score, label, box) in enumerate(
        zip(found.scores.tolist(), found.labels.tolist(), boxes, strict=True)
    ):
        if 'masks' not in found:
            yield Piece(window, label, score, box)
        elif placed := encode(found.masks[i].numpy(), window):
            yield Piece(window, label, score, box, *placed)


def blend_labels(
    samples: Iterable[Any], grid: list[list[Window]], shape: tuple[int, int], model: Any
) -> Any:
    """Blend the class scores of windows into a label map.

    Args:
        samples: mmseg's data sample of each window, row by row.
        grid: The windows.
        shape: Height and width of the image.
        model: The segmenter, which has the threshold of a single class.

    Returns:
        A data sample of the image, with ``pred_sem_seg`` and without scores.
    """
    stream = iter(samples)
    first = next(stream)
    scores = (sample.seg_logits.data.numpy() for sample in chain([first], stream))

    def decide(scores: np.ndarray) -> np.ndarray:
        return scores.argmax(0) if len(scores) > 1 else scores[0] > model.decode_head.threshold

    labels = blend(scores, grid, decide)
    return first.new(
        metainfo=_metainfo(shape), pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None])
    )


def _metainfo(shape: tuple[int, int]) -> dict:
    return dict(ori_shape=shape, img_shape=shape, img_path=None)

"""Turns data samples of tiles into one of their image; ``tiles.py`` does the merging."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

from .tiles import Piece, Window, blend, encode, merge


def merge_objects(samples: Iterable[Any], grid: list[list[Window]], shape: tuple[int, int]) -> Any:
    """Merge the mmdet data samples of tiles, row by row, to that of an image.

    Its masks are a list of COCO run-length encodings.
    """
    pieces: list[Piece] = []
    flat = [window for row in grid for window in row]
    for window, sample in zip(flat, samples, strict=True):
        pieces += _pieces(sample.pred_instances, window)
    objects = merge(pieces, *shape)
    merged = InstanceData(
        bboxes=torch.tensor([each.box for each in objects]).reshape(-1, 4),
        scores=torch.tensor([each.score for each in objects]),
        labels=torch.tensor([each.label for each in objects], dtype=torch.long),
    )
    if 'masks' in sample.pred_instances:
        merged.masks = [each.mask for each in objects]
    return sample.new(metainfo=_metainfo(shape), pred_instances=merged)


def _pieces(instances: InstanceData, window: Window) -> Iterable[Piece]:
    boxes = (instances.bboxes + torch.tensor([window.x1, window.y1] * 2)).tolist()
    values = instances.scores.tolist(), instances.labels.tolist(), boxes
    for i, (score, label, box) in enumerate(zip(*values, strict=True)):
        if 'masks' not in instances:
            yield Piece(window, label, score, box)
        elif encoded := encode(instances.masks[i].numpy(), window):
            yield Piece(window, label, score, box, *encoded)


def blend_labels(
    samples: Iterable[Any], grid: list[list[Window]], shape: tuple[int, int], model: Any
) -> Any:
    """Blend the scores in mmseg data samples of tiles, row by row, into a label map of the image.

    The data sample has no scores. A binary segmenter has the threshold of its single class.
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

"""Predictions of any task as plain data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco


@dataclass(frozen=True)
class Object:
    """A detected object."""

    label: int  # index of the class
    score: float  # from 0 to 1
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the image
    mask: dict | None = None  # COCO run-length encoding; None if the detector has no masks


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for an image; attributes of other tasks are None."""

    objects: tuple[Object, ...] | None = None  # objects of a detector, by descending score
    label_map: np.ndarray | None = None  # label map of a segmenter, (H, W) of uint16
    class_scores: np.ndarray | None = None  # scores of a classifier, (classes,)

    @classmethod
    def of(cls, sample: Any) -> 'Prediction':
        """Convert a data sample of mmdet, mmseg or mmpretrain; predictions are returned as is."""
        if isinstance(sample, cls):
            return sample
        if 'pred_instances' in sample:
            instances = sample.pred_instances.cpu()
            masks = instances.masks if 'masks' in instances else [None] * len(instances)
            values = (instances[name].tolist() for name in ('labels', 'scores', 'bboxes'))
            objects = (
                Object(label, score, tuple(box), encoded(mask))
                for label, score, box, mask in zip(*values, masks, strict=True)
            )
            return cls(objects=tuple(sorted(objects, key=lambda one: -one.score)))
        if 'pred_sem_seg' in sample:
            return cls(label_map=sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint16))
        return cls(class_scores=sample.pred_score.cpu().numpy())

    def at_least(self, score: float) -> list[Object]:
        """Return the objects with a minimum score."""
        return [one for one in self.objects or () if one.score >= score]

    def shares(self) -> list[tuple[int, float]]:
        """Return the classes of the label map, and their shares of the pixels."""
        assert self.label_map is not None
        labels, counts = np.unique(self.label_map, return_counts=True)
        return list(zip(labels.tolist(), (counts / counts.sum()).tolist(), strict=True))

    def top(self, count: int) -> list[tuple[int, float]]:
        """Return the classes with the highest scores, and their scores."""
        assert self.class_scores is not None
        best = np.argsort(-self.class_scores, kind='stable')[:count]
        return list(zip(best.tolist(), self.class_scores[best].tolist(), strict=True))


def encoded(mask: Any) -> dict | None:
    """The COCO run-length encoding of a mask, unless it has that form; None for no mask."""
    if mask is None or isinstance(mask, dict):
        return mask
    return coco.encode(np.asfortranarray(mask, np.uint8))

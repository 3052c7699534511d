"""Predictions on their image, in fixed colours."""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from .canvas import Canvas
from .palette import Color, color_of
from .text import legible

LARGEST = 4096
"""Longest side of a picture, in pixels."""
TOP = 5


class Drawer:
    """Draws predictions of any task.

    Args:
        classes: Names of the classes; labels without one are drawn as numbers.
        palette: (R, G, B) of each class.
    """

    def __init__(self, classes: list[str], palette: list[Color]) -> None:
        self.classes, self.palette = classes, palette

    def draw(self, image: np.ndarray, sample: Any, score: float, scale: float = 1) -> np.ndarray:
        """Draw what was predicted.

        Args:
            image: (H, W, 3) in RGB.
            sample: The image's data sample.
            score: Objects are drawn from this score up.
            scale: Size of the picture, in that of the image; less where it exceeds ``LARGEST``.

        Returns:
            The picture, (H, W, 3) of uint8 in RGB.
        """
        scale = min(scale, LARGEST / max(image.shape[:2]))
        picture: np.ndarray = np.array(image, np.uint8)  # a copy
        if scale != 1:
            smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=smooth)
        canvas = Canvas(picture, (scale, scale))
        if 'pred_instances' in sample:
            found = sample.pred_instances.cpu()
            found = found[found.scores >= score]
            labels, scores = found.labels.tolist(), found.scores.tolist()
            captions = [f'{self.name(i)} {p:.2f}' for i, p in zip(labels, scores, strict=True)]
            masks = [
                rle.decode(mask) if isinstance(mask, dict) else np.asarray(mask, np.uint8)
                for mask in found.get('masks', ())
            ]
            canvas.objects(found.bboxes.tolist(), labels, captions, self.palette, masks)
        elif 'pred_sem_seg' in sample:
            labels = sample.pred_sem_seg.cpu().data[0].numpy()
            classes = {i: (self.name(i), color_of(self.palette, i)) for i in np.unique(labels)}
            canvas.label_map(labels, classes)
        else:
            best = sample.pred_score.topk(min(TOP, len(sample.pred_score)))
            top = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            canvas.lines(f'{p:.2f} {self.name(i)}' for p, i in top)
        return canvas.finish()

    def name(self, label: int) -> str:
        return legible(self.classes[label], label) if label < len(self.classes) else str(label)

"""Predictions on their image, in fixed colours."""

from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from pycocotools import mask as rle

OPACITY = 0.5
LARGEST = 4096
"""Longest side of a picture, in pixels."""
LABEL = dict(facecolor='black', alpha=0.7, pad=0.7, edgecolor='none')
TOP = 5


class Drawer:
    """Draws predictions of any task by mmengine's visualizer.

    The packages' own visualizers, on top of it, give each object another colour at each drawing,
    and take seconds for large images.

    Args:
        classes: Names of the classes; labels without one are drawn as numbers.
        palette: (R, G, B) of each class.
    """

    def __init__(self, classes: list[str], palette: list[tuple]) -> None:
        self.classes, self.palette = classes, palette
        self._canvas = Visualizer(name='predictor')

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
        if 'pred_instances' in sample:
            found = sample.pred_instances.cpu()
            best_last = (found.scores >= score).nonzero()[:, 0].flip(0)
            self._objects(picture, found[best_last], scale)
        elif 'pred_sem_seg' in sample:
            self._regions(picture, sample.pred_sem_seg.cpu().data[0].numpy())
        else:
            self._top(picture, sample.pred_score.cpu())
        return self._canvas.get_image()

    def _objects(self, picture: np.ndarray, found: InstanceData, scale: float) -> None:
        labels = found.labels.tolist()
        for mask, label in zip(found.get('masks', ()), labels, strict=False):
            _tint(picture, mask, self._color(label))
        self._canvas.set_image(picture)
        if not labels:
            return
        # The canvas warns of boxes that are a fraction of a pixel outside.
        boxes = (found.bboxes * scale).clamp(0)
        boxes = boxes.minimum(torch.tensor([*picture.shape[1::-1]] * 2) - 0.01)
        self._canvas.draw_bboxes(boxes, edge_colors=[self._color(label) for label in labels])
        self._canvas.draw_texts(
            [
                f'{self._name(label)} {score:.2f}'
                for label, score in zip(labels, found.scores.tolist(), strict=True)
            ],
            boxes[:, :2] + 2,
            colors='white',
            bboxes=LABEL,
        )

    def _regions(self, picture: np.ndarray, labels: np.ndarray) -> None:
        labels = labels.astype(np.uint16)
        if labels.shape != picture.shape[:2]:
            labels = cv2.resize(labels, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        present = np.unique(labels).tolist()
        colors = np.zeros((max(present) + 1, 3))
        for label in present:
            colors[label] = self._color(label)
        picture[:] = (1 - OPACITY) * picture + OPACITY * colors[labels]
        self._canvas.set_image(picture)
        self._canvas.draw_texts(
            [self._name(label) for label in present],
            np.array([_middle(labels == label) for label in present]),
            colors='white',
            horizontal_alignments='center',
            vertical_alignments='center',
            bboxes=LABEL,
        )

    def _top(self, picture: np.ndarray, scores: torch.Tensor) -> None:
        best = scores.topk(min(TOP, len(scores)))
        self._canvas.set_image(picture)
        lines = [
            f'{score:.2f} {self._name(label)}'
            for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        self._canvas.draw_texts('\n'.join(lines), np.array([4, 4]), colors='white', bboxes=LABEL)

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)

    def _color(self, label: int) -> tuple:
        return self.palette[label] if label < len(self.palette) else (255, 255, 0)


def _tint(picture: np.ndarray, mask: Any, color: tuple) -> None:
    decoded = rle.decode(mask) if isinstance(mask, dict) else mask
    dense: np.ndarray = np.ascontiguousarray(decoded, np.uint8)
    if dense.shape != picture.shape[:2]:
        dense = cv2.resize(dense, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    inside = dense.astype(bool)
    picture[inside] = (1 - OPACITY) * picture[inside] + OPACITY * np.array(color)
    outline, _ = cv2.findContours(dense, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outline, -1, (255, 255, 255), 1)


def _middle(region: np.ndarray) -> tuple[int, int]:
    """The point (x, y) of a region that is farthest from its border."""
    distance = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 3)
    y, x = np.unravel_index(distance[1:-1, 1:-1].argmax(), region.shape)
    return int(x), int(y)

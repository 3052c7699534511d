"""The annotations that a model is given, drawn on its input by the packages' visualizers."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData

SHORT_SIDE = 480
"""Pixels that the shorter side of a picture has at least: captions do not fit on less."""
OPACITY = 0.4
STRIPE = 6
IGNORED, IGNORED_COLOUR = 'ignored', (255, 0, 0)


def build_visualizer(cfg: Config, metainfo: Mapping[str, Any]) -> Any:
    """The visualizer of a config, which stores nothing.

    Args:
        cfg: The config.
        metainfo: The data set's, with ``classes`` and perhaps a ``palette``.
    """
    settings = dict(cfg.get('visualizer') or dict(type='Visualizer'), vis_backends=[])
    # By its class, not the registry, which gives one instance to all who ask for a name.
    with VISUALIZERS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        kind = registry.get(settings.pop('type'))
    settings.pop('_scope_', None)
    visualizer = kind(**settings)
    visualizer.dataset_meta = {key: metainfo.get(key) for key in ('classes', 'palette')}
    return visualizer


def draw_truth(visualizer: Any, picture: np.ndarray, sample: Any, in_input: bool) -> np.ndarray:
    """Draw an image's annotations.

    Boxes, masks and label maps are drawn as they are, what a loss ignores in red, padding
    striped. The picture of a small image is enlarged by a whole number.

    Args:
        visualizer: Of ``build_visualizer``.
        picture: The input with its normalisation undone, (H, W, 3) of uint8 in RGB.
        sample: Its data sample.
        in_input: Whether annotations are where the input has them, as in a training; else they
            are where the file has them, as the packages evaluate.

    Returns:
        The picture, (H, W, 3) of uint8 in RGB.
    """
    zoom = max(1, -(-SHORT_SIDE // min(picture.shape[:2])))
    shape = sample.metainfo.get('img_shape', picture.shape)[:2]
    own = shape if in_input else sample.metainfo.get('ori_shape', shape)[:2]
    picture = _stripe(picture, *shape)
    picture = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    scale = tuple(zoom * new / old for new, old in zip(shape, own, strict=True))
    if 'gt_instances' in sample:
        return _draw_instances(visualizer, picture, sample, scale)
    if 'gt_sem_seg' in sample:
        size = picture.shape[:2] if in_input else [zoom * side for side in shape]
        return _draw_label_map(visualizer, picture, sample, size)
    return _draw_labels(visualizer, picture, sample)


def _stripe(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mark what is not of the image."""
    y, x = np.indices(picture.shape[:2])
    light = np.where((x + y) // STRIPE % 2, 90, 50).astype(np.uint8)
    inside = np.logical_and(y < height, x < width)
    return np.where(inside[..., None], picture, light[..., None])


def _draw_instances(
    visualizer: Any, picture: np.ndarray, sample: Any, scale: Sequence[float]
) -> np.ndarray:
    from mmdet.visualization.palette import get_palette

    found = sample.gt_instances
    labels = found.labels.tolist()
    if labels and 'masks' in found:
        palette = get_palette(visualizer.dataset_meta.get('palette'), max(labels) + 1)
        visualizer.set_image(picture)
        masks = torch.from_numpy(found.masks.to_ndarray())
        size = [round(side * by) for side, by in zip(masks.shape[1:], scale, strict=True)]
        masks = _place(masks, size, picture, fill=0)
        colors = [palette[label] for label in labels]
        visualizer.draw_binary_masks(masks.bool(), colors, alphas=OPACITY)
        picture = visualizer.get_image()
    boxes = _corners(found.bboxes, scale, picture)
    shown = sample.new(gt_instances=InstanceData(bboxes=boxes, labels=found.labels))
    visualizer.add_datasample('', picture, shown, draw_pred=False)
    ignored = sample.get('ignored_instances')
    if ignored is not None and len(ignored.bboxes):
        boxes = _corners(ignored.bboxes, scale, picture)
        visualizer.draw_bboxes(boxes, edge_colors='r', line_styles='--')
        visualizer.draw_texts([IGNORED] * len(boxes), boxes[:, :2], colors='r')
    return visualizer.get_image()


def _corners(boxes: Any, scale: Sequence[float], picture: np.ndarray) -> torch.Tensor:
    """Boxes (n, 4) in a picture; the visualizer warns of what is a fraction of a pixel outside."""
    from mmdet.structures.bbox import get_box_tensor

    y, x = scale
    most = torch.tensor([*picture.shape[1::-1]] * 2) - 0.01
    return (get_box_tensor(boxes) * torch.tensor([x, y, x, y])).clamp(0).minimum(most)


def _draw_label_map(
    visualizer: Any, picture: np.ndarray, sample: Any, size: Sequence[int]
) -> np.ndarray:
    meta = visualizer.dataset_meta
    none = len(meta['classes'])
    labels = _place(sample.gt_sem_seg.data, size, picture, fill=none)
    shown = sample.new(gt_sem_seg=PixelData(data=labels.masked_fill(labels >= none, none)))
    visualizer.alpha = OPACITY
    visualizer.dataset_meta = dict(
        classes=[*meta['classes'], IGNORED], palette=[*meta['palette'], IGNORED_COLOUR]
    )
    visualizer.add_datasample('', picture, shown, draw_pred=False)
    visualizer.dataset_meta = meta
    return visualizer.get_image()


def _place(maps: torch.Tensor, size: Sequence[int], picture: np.ndarray, fill: int) -> torch.Tensor:
    """Resize maps (n, h, w) without blending, and cut or fill them to a picture's size."""
    height, width = picture.shape[:2]
    resized = F.interpolate(maps[None].float(), size=list(size))[0].long()
    return F.pad(resized, (0, width - size[1], 0, height - size[0]), value=fill)


def _draw_labels(visualizer: Any, picture: np.ndarray, sample: Any) -> np.ndarray:
    visualizer.set_image(picture)
    lines = '\n'.join(describe_labels(sample, visualizer.dataset_meta['classes']))
    box = dict(facecolor='black', alpha=0.7, edgecolor='none', pad=3)
    place = np.array([8, 8])
    visualizer.draw_texts(lines, place, font_sizes=16, colors='w', bboxes=box)
    return visualizer.get_image()


def describe_labels(sample: Any, classes: Sequence[str] | None) -> list[str]:
    """The classes of a classifier's data sample, each with its share where it has several."""
    score = sample.get('gt_score')
    labels = sample.gt_label if score is None else score.nonzero()[:, 0]
    lines = [str(classes[label] if classes else label) for label in labels.tolist()]
    if len(lines) == 1 or score is None:
        return lines
    return [f'{score[label]:.2f} {line}' for label, line in zip(labels, lines, strict=True)]

"""Figures and pictures of label maps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS
from PIL import Image
from tqdm import tqdm

from ..config import datasets_of, evaluators_of, transforms_of
from ..drawing.palette import Color, class_colors
from ..errors import UserError
from .evaluation import Column, Confusion, Evaluation, Picture, Table, count_pairs, extremes
from .pictures import as_hex, as_overlay, as_photo, image_reader

MEANINGS = {
    'IoU': 'intersection over union',
    'Acc': 'share of the pixels of the class that were found',
    'Dice': 'twice the intersection over the sum of both',
    'Fscore': 'harmonic mean of precision and recall',
    'Precision': 'share of the pixels found that are of the class',
    'Recall': 'share of the pixels of the class that were found',
}


@dataclass
class _Maps:
    """The maps of an image as numbers of classes: the truth, and what was found."""

    cfg: Config
    dataset: BaseDataset
    folder: Path
    ignore: int

    def __post_init__(self) -> None:
        (settings, *_) = datasets_of(self.cfg.test_dataloader)
        steps = transforms_of(settings.pipeline, 'LoadAnnotations')
        # It shifts and renames numbers as the data set says.
        self.load = TRANSFORMS.build(steps[0] if steps else dict(type='LoadAnnotations'))

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        info = self.dataset.get_data_info(i)
        path = self.folder / f'{Path(info["img_path"]).stem}.png'
        if not path.is_file():
            raise UserError(f'{path} does not exist: the predictions are of other images')
        true = self.load(info)['gt_seg_map']
        found = np.asarray(Image.open(path)).astype(int) - bool(info['reduce_zero_label'])
        if found.shape != true.shape:
            raise UserError(
                f'{path} is of {found.shape} pixels, the ground truth of {true.shape}: the '
                'predictions are of other images'
            )
        return true, found

    def count(self, i: int, classes: int) -> np.ndarray:
        true, found = self[i]
        counted = true != self.ignore
        return count_pairs(true[counted], found[counted], classes)


def evaluate_segmentation(cfg: Config, dataset: BaseDataset, prefix: str) -> Evaluation:
    """Evaluate the label maps in PREFIX.maps.

    Args:
        cfg: The config; its ``test_evaluator`` names the metrics.
        dataset: What its ``test_dataloader`` reads.
        prefix: The PREFIX of ``tools/test.py --out``.

    Raises:
        UserError: A map is missing or not of the size of its image.
    """
    evaluator = next(e for e in evaluators_of(cfg, 'test') if e.type.endswith('IoUMetric'))
    names = list(dataset.metainfo['classes'])
    maps = _Maps(cfg, dataset, Path(f'{prefix}.maps'), evaluator.get('ignore_index', 255))
    total = np.zeros((len(names), len(names)), np.int64)
    ranked = []
    for i in tqdm(range(len(dataset)), desc='label maps', leave=False):
        counts = maps.count(i, len(names))
        if counts.any():
            ranked.append((float(np.nanmean(_iou(counts))), i))
        total += counts
    evaluation = Evaluation('segmentation', len(dataset))
    _add_figures(evaluation, evaluator, total, names)
    evaluation.confusion = Confusion(
        total, names, 'pixels', 'Every pixel whose class is known is counted.'
    )
    evaluation.ranking = 'mean IoU of the classes that an image has or was said to have'
    ranked.sort()
    palette = class_colors(cfg, datasets_of(cfg.test_dataloader)[0], names)
    read = image_reader(cfg)
    evaluation.worst, evaluation.best = (
        [_draw(maps, read, i, iou, names, palette) for iou, i in chosen]
        for chosen in extremes(ranked)
    )
    return evaluation


def _iou(counts: np.ndarray) -> np.ndarray:
    """Of each class, NaN where it is neither there nor found."""
    right = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - right
    with np.errstate(invalid='ignore'):
        return right / union


def _add_figures(
    evaluation: Evaluation, evaluator: Any, counts: np.ndarray, names: list[str]
) -> None:
    from mmseg.evaluation import IoUMetric

    right, true, found = counts.diagonal(), counts.sum(1), counts.sum(0)
    areas = (torch.from_numpy(area.copy()) for area in (right, true + found - right, found, true))
    settings = [evaluator.get('iou_metrics', ['mIoU']), evaluator.get('nan_to_num')]
    figures = IoUMetric.total_area_to_metrics(*areas, *settings, evaluator.get('beta', 1))
    evaluation.metrics['aAcc'] = 100 * float(figures.pop('aAcc'))
    for name, values in figures.items():
        evaluation.metrics[f'm{name}'] = 100 * float(np.nanmean(values))
    columns = [
        Column('class', 'text'),
        Column('share', 'percent', 'of the pixels of the ground truth'),
        *(Column(name, 'percent', MEANINGS[name]) for name in figures),
    ]
    shares = 100 * true / max(1, true.sum())
    rows = [
        [name, float(share), *(None if np.isnan(v) else 100 * float(v) for v in values)]
        for name, share, *values in zip(names, shares, *figures.values(), strict=True)
    ]
    evaluation.tables.append(Table('IoU', columns, rows))


def _draw(
    maps: _Maps, read: Any, i: int, iou: float, names: list[str], palette: list[Color]
) -> Picture:
    path = maps.dataset.get_data_info(i)['img_path']
    true, found = maps[i]
    found = np.where(true == maps.ignore, len(names), found)  # there, nothing is right or wrong
    present = np.union1d(true, found)
    return Picture(
        name=Path(path).name,
        verdict=f'mean IoU {100 * iou:.1f}',
        width=true.shape[1],
        height=true.shape[0],
        photo=as_photo(read(path)),
        truth=as_overlay(true, palette),
        found=as_overlay(found, palette),
        legend=[(names[k], as_hex(palette[k])) for k in present if k < len(names)],
    )

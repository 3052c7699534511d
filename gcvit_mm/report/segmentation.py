"""Evaluates the label maps of a segmenter for a report."""

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
from ..evaluation.prediction_files import names_of_images, values_of_labels
from .analysis import interval_part
from .evaluation import Column, Confusion, Evaluation, Picture, Table, count_pairs, extremes
from .intervals import resample
from .pictures import as_hex, as_overlay, as_photo, image_reader

MEANINGS = {
    'IoU': 'intersection over union',
    'Acc': 'share of pixels of the class that are predicted as the class',
    'Dice': 'twice the intersection over the sum of both areas',
    'Fscore': 'harmonic mean of precision and recall',
    'Precision': 'share of pixels predicted as the class that are of the class',
    'Recall': 'share of pixels of the class that are predicted as the class',
}


@dataclass
class _Maps:
    """Label maps of images: ground truth and predictions."""

    cfg: Config
    dataset: BaseDataset
    folder: Path
    ignore: int

    def __post_init__(self) -> None:
        (settings, *_) = datasets_of(self.cfg.test_dataloader)
        steps = transforms_of(settings.pipeline, 'LoadAnnotations')
        # It remaps labels according to the metainfo of the data set.
        self.load = TRANSFORMS.build(steps[0] if steps else dict(type='LoadAnnotations'))
        infos = map(self.dataset.get_data_info, range(len(self.dataset)))
        self.names = names_of_images([info['img_path'] for info in infos])
        values = values_of_labels(self.dataset.metainfo)[: len(self.dataset.metainfo['classes'])]
        self.labels = np.zeros(2**16 + 1, int)
        self.labels[values] = np.arange(len(values))

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        info = self.dataset.get_data_info(i)
        path = self.folder / f'{self.names[info["img_path"]]}.png'
        if not path.is_file():
            raise UserError(f'{path} is missing: give predictions for the test set of the config')
        true = self.load(info)['gt_seg_map']
        predicted = self.labels[np.asarray(Image.open(path))]
        if predicted.shape != true.shape:
            raise UserError(
                f'{path} has the shape {predicted.shape}, its ground truth {true.shape}: give '
                'predictions for the test set of the config'
            )
        return true, predicted

    def count(self, i: int, classes: int) -> np.ndarray:
        true, predicted = self[i]
        counted = true != self.ignore
        return count_pairs(true[counted], predicted[counted], classes)


def evaluate_segmentation(cfg: Config, dataset: BaseDataset, prefix: str) -> Evaluation:
    """Evaluate the label maps in PREFIX.maps."""
    evaluator = next(e for e in evaluators_of(cfg, 'test') if e.type.endswith('IoUMetric'))
    names = list(dataset.metainfo['classes'])
    maps = _Maps(cfg, dataset, Path(f'{prefix}.maps'), evaluator.get('ignore_index', 255))
    total = np.zeros((len(names), len(names)), np.int64)
    ranked, areas = [], []
    for i in tqdm(range(len(dataset)), desc='label maps', leave=False):
        counts = maps.count(i, len(names))
        if counts.any():
            ranked.append((float(np.nanmean(_iou(counts))), i))
        total += counts
        right = counts.diagonal()
        areas.append((right, counts.sum(0) + counts.sum(1) - right))
    evaluation = Evaluation('segmentation', len(dataset))
    _add_figures(evaluation, evaluator, total, names)
    right, union = (resample(len(areas)) @ np.array(area) for area in zip(*areas, strict=True))
    ious = np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)
    evaluation.resampled = {'mIoU': np.nanmean(ious, 1)}
    evaluation.sampled = list(maps.names.values())
    evaluation.parts = [interval_part(evaluation.resampled, names, ious, 'IoU')]
    evaluation.confusion = Confusion(
        total, names, 'pixels', 'All pixels with a class in the ground truth are counted.'
    )
    evaluation.ranking = 'mean IoU of the classes in the ground truth or the prediction'
    ranked.sort()
    palette = class_colors(cfg, datasets_of(cfg.test_dataloader)[0], names)
    read = image_reader(cfg)
    evaluation.worst, evaluation.best = (
        [_draw(maps, read, i, iou, names, palette) for iou, i in chosen]
        for chosen in extremes(ranked)
    )
    return evaluation


def _iou(counts: np.ndarray) -> np.ndarray:
    """Compute the IoU of each class, NaN for a class without pixels."""
    right = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - right
    with np.errstate(invalid='ignore'):
        return right / union


def _add_figures(
    evaluation: Evaluation, evaluator: Any, counts: np.ndarray, names: list[str]
) -> None:
    from mmseg.evaluation import IoUMetric

    right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    areas = (right, true + predicted - right, predicted, true)
    settings = [evaluator.get('iou_metrics', ['mIoU']), evaluator.get('nan_to_num')]
    figures = IoUMetric.total_area_to_metrics(
        *(torch.from_numpy(area.copy()) for area in areas), *settings, evaluator.get('beta', 1)
    )
    evaluation.metrics['aAcc'] = 100 * float(figures.pop('aAcc'))
    for name, values in figures.items():
        evaluation.metrics[f'm{name}'] = 100 * float(np.nanmean(values))
    columns = [
        Column('class', 'text'),
        Column('share', 'percent', 'of all pixels of the ground truth'),
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
    true, predicted = maps[i]
    predicted = np.where(true == maps.ignore, len(names), predicted)
    present = np.union1d(true, predicted)
    return Picture(
        name=Path(path).name,
        verdict=f'mean IoU {100 * iou:.1f}',
        width=true.shape[1],
        height=true.shape[0],
        image=as_photo(read(path)),
        truth=as_overlay(true, palette),
        predicted=as_overlay(predicted, palette),
        legend=[(names[k], as_hex(palette[k])) for k in present if k < len(names)],
    )

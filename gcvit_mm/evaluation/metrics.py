"""What OpenMMLab's metrics are called, and repairs of mmdet's ``CocoMetric``."""

import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from ..datasets.check.coco_file import FIELDS
from ..errors import UserError
from .faster_coco_metric import fastest_evaluation

AP = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
AR = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
IOUS = np.linspace(0.5, 0.95, 10)
OF_IOU_METRIC = {
    'mIoU': ('mIoU', 'mAcc'),
    'mDice': ('mDice', 'mAcc'),
    'mFscore': ('mFscore', 'mPrecision', 'mRecall'),
}


def metric_names(metric: BaseMetric) -> list[str] | None:
    """The names under which a metric reports its results; None if they are not known."""
    kinds = {kind.__name__ for kind in type(metric).__mro__}
    own: Any = metric
    names = None
    if 'CocoMetric' in kinds and not own.classwise and {'bbox', 'segm'}.issuperset(own.metrics):
        names = [f'{kind}_{item}' for kind in own.metrics for item in own.metric_items or AP]
    elif 'IoUMetric' in kinds and set(own.metrics) <= OF_IOU_METRIC.keys():
        names = ['aAcc', *(name for kind in own.metrics for name in OF_IOU_METRIC[kind])]
    elif 'Accuracy' in kinds and len(own.thrs) == 1:
        names = [f'top{k}' for k in own.topk]
    if names and metric.prefix:
        names = [f'{metric.prefix}/{name}' for name in names]
    return names


def full_name(name: str, metrics: list[BaseMetric], option: str) -> str:
    """The name of a metric in results, which have prefixes such as 'coco/'."""
    known = {metric: metric_names(metric) for metric in metrics}
    names = [full for found in known.values() for full in found or []]
    matches = [full for full in names if name in (full, full.partition('/')[2])]
    if len(matches) == 1:
        return matches[0]
    others = [metric.prefix for metric, found in known.items() if found is None]
    if matches or not any(prefix is None or name.startswith(f'{prefix}/') for prefix in others):
        more = [f'those of {prefix}/' for prefix in others]
        raise UserError(
            f'{option}={name} is not one metric of the val_evaluator: choose one of '
            f'{", ".join(names + more)}'
        )
    return name


def repair_coco_metric(metric: Any) -> None:
    """Let a ``CocoMetric`` evaluate faster, and classes of both kinds, one IoU, short polygons."""
    if not hasattr(metric, '_coco_api') or not hasattr(metric, 'iou_thrs'):
        return
    module: Any = sys.modules[type(metric).__module__]
    if hasattr(module, 'COCOeval_faster'):
        module.COCOeval_faster = fastest_evaluation()
    metric.iou_thrs = np.atleast_1d(np.array(metric.iou_thrs, float))
    if metric.classwise and not (len(metric.iou_thrs) == 10 and np.allclose(metric.iou_thrs, IOUS)):
        raise UserError(
            'evaluator: classwise=True needs the IoU thresholds 0.5 to 0.95: remove iou_thrs, or '
            'read the APs of the classes from the report (tools/report.py)'
        )
    wrong = set(metric.metric_items or ()) - {*AP, *AR}
    if wrong:
        named = f'{", ".join(sorted(wrong))}: choose from {", ".join(AP + AR)}'
        raise UserError(f'evaluator.metric_items: {named}')
    if metric._coco_api is not None:
        make_countable(metric._coco_api)
    if metric.classwise and len(metric.metrics) > 1 and 'compute_metrics' not in vars(metric):
        _name_kinds(metric)


def make_countable(truth: Any) -> None:
    """Let COCO's evaluators count all annotations of a file.

    They need the ids 1, 2, ... (0 is never matched), ``iscrowd``, and polygons of at least three
    points; mmdet skips shorter ones in training, too. Some stop at fields that are not checked.
    """
    for key, fields in FIELDS.items():
        for entry in truth.dataset.get(key, []):
            for name in entry.keys() - fields.keys() - {'segmentation'}:
                del entry[name]
    for number, annotation in enumerate(truth.dataset.get('annotations', []), 1):
        annotation['id'] = number
        annotation['iscrowd'] = int(annotation.get('iscrowd') or 0)
        polygons = annotation.get('segmentation')
        if isinstance(polygons, list):
            annotation['segmentation'] = [polygon for polygon in polygons if len(polygon) >= 6]
    with redirect_stdout(StringIO()):
        truth.createIndex()


def _name_kinds(metric: Any) -> None:
    """Give the APs of a class for boxes and for masks two names; ``CocoMetric`` has one."""
    compute, kinds = metric.compute_metrics, metric.metrics

    def compute_each(results: list) -> dict[str, float]:
        named = {}
        for kind in kinds:
            metric.metrics = [kind]
            for name, value in compute(results).items():
                named[f'{kind}_{name}' if name.endswith('_precision') else name] = value
        metric.metrics = kinds
        return named

    metric.compute_metrics = compute_each

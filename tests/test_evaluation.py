"""The evaluator that the configs name gives published figures."""

import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import gcvit_mm  # noqa: F401  (mmdet needs mmcv's operations)

SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
CONFIGS = Path(__file__).parents[1] / 'configs'
# mmdet's names of the COCO API's 12 figures; with limits of 1, 10 and 100 detections, the second
# half are AR1, AR10, AR100, and AR of small, medium and large objects.
ITEMS = [
    'mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l',
    'AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000',
]  # fmt: skip


@pytest.mark.skipif(not SAMPLES, reason='GCVIT_MM_SAMPLES is unset: no published results here')
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize(
    'config', ['mask_rcnn_gcvit_tiny_coco.py', 'mask_rcnn_gcvit_xxtiny_coco.py']
)
def test_coco_evaluator_gives_the_published_figures(config, kind):
    folder = Path(SAMPLES) / 'eval_check'
    truth = json.loads((folder / 'instances_val2014_100.json').read_text())
    results = json.loads((folder / f'instances_val2014_fake{kind}100_results.json').read_text())
    expected = json.loads((folder / 'expected_full_precision.json').read_text())[kind]['stats']

    init_default_scope('mmdet')
    from mmdet.datasets import CocoDataset

    cfg = Config.fromfile(CONFIGS / config)
    evaluator = Runner.build_evaluator(
        None,
        {
            **cfg.val_evaluator,
            'ann_file': str(folder / 'instances_val2014_100.json'),
            'metric': kind,
            'metric_items': ITEMS,
        },
    )
    evaluator.dataset_meta = CocoDataset.METAINFO
    evaluator.process(list(predictions(truth, results)))
    metrics = evaluator.evaluate(len(truth['images']))
    measured = [metrics[f'coco/{kind}_{item}'] for item in ITEMS]
    assert measured == [pytest.approx(round(value, 3), abs=1e-9) for value in expected]


def predictions(truth: dict, results: list[dict]):
    """COCO's results as what a detector hands to its evaluator, image by image."""
    labels = {category['id']: i for i, category in enumerate(truth['categories'])}
    by_image = defaultdict(list)
    for result in results:
        by_image[result['image_id']].append(result)
    for image in truth['images']:
        found = by_image[image['id']]
        boxes = np.array([r.get('bbox', [0, 0, 1, 1]) for r in found], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = dict(
            bboxes=torch.from_numpy(boxes),
            scores=torch.tensor([r['score'] for r in found], dtype=torch.float64),
            labels=torch.tensor([labels[r['category_id']] for r in found], dtype=torch.int64),
        )
        if found and 'segmentation' in found[0]:
            instances['masks'] = [r['segmentation'] for r in found]
        elif results and 'segmentation' in results[0]:
            instances['masks'] = []
        yield dict(
            img_id=image['id'],
            ori_shape=(image['height'], image['width']),
            pred_instances=instances,
        )

"""The labels that a detector was trained on: how many, how large, where, and samples."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS

from ..config import datasets_of
from .analysis import Part, line_chart
from .detection import _Drawing
from .evaluation import MAX_PICTURES, Column, Evaluation, Table
from .pictures import as_heat_map

COLUMNS = [Column('class', 'text'), Column('objects', 'count'), Column('images', 'count')]
COLUMNS += [Column('median size', 'count', 'square root of the area of the box, in pixels')]
CELLS = 24
"""Rows and columns of the map of places."""


def add_training_labels(evaluation: Evaluation, cfg: Config) -> None:
    """Add the distribution of the training labels, and samples."""
    settings = datasets_of(cfg.train_dataloader)
    datasets = [DATASETS.build({**each, 'pipeline': []}) for each in settings]
    infos = [dataset.get_data_info(i) for dataset in datasets for i in range(len(dataset))]
    names = datasets[0].metainfo['classes']
    rows = [
        (each['bbox_label'], i, *each['bbox'], info['width'], info['height'])
        for i, info in enumerate(infos)
        for each in info['instances']
        if not each.get('ignore_flag')
    ]
    label, image, left, top, right, bottom, width, height = np.array(rows).reshape(-1, 8).T
    sizes = np.sqrt((right - left) * (bottom - top))
    table = [
        [name, len(sizes[mine]), len(np.unique(image[mine])), round(np.median(sizes[mine]))]
        for name, mine in ((name, label == k) for k, name in enumerate(names))
        if mine.any()
    ]
    numbers, edges = np.histogram(sizes, 20, (0, sizes.max(initial=1)))
    per_image = np.bincount(np.bincount(image.astype(int), minlength=len(infos)))
    centres = (top + bottom) / 2 / height, (left + right) / 2 / width
    places = np.histogram2d(*centres, CELLS, [(0, 1), (0, 1)])[0]
    by_size = ['objects', (edges[1:] + edges[:-1]) / 2, numbers]
    by_count = ['images', np.arange(len(per_image)), per_image]
    evaluation.parts.append(
        Part(
            'Training labels',
            f'{len(rows):,} objects in {len(infos):,} images; images that the config leaves out '
            'do not count.',
            [Table('Training labels', COLUMNS, table)],
            [
                line_chart('sizes', 'Objects by size', 'size of the box, pixels', [by_size]),
                line_chart('counts', 'Images by number of objects', 'objects', [by_count]),
            ],
            {'Centres of objects in the image: the brighter, the more': as_heat_map(places)},
        )
    )
    images = {
        i: dict(file_name=info['img_path'], width=info['width'], height=info['height'])
        for i, info in enumerate(infos)
    }
    truth: Any = SimpleNamespace(
        cfg=cfg,
        dataset=datasets[0],
        coco=SimpleNamespace(imgs=images),
        names=names,
        label_of={k: k for k in range(len(names))},
    )
    draw = _Drawing(truth, {})
    draw.paths = {i: info['img_path'] for i, info in enumerate(infos)}
    for i in np.unique(np.linspace(0, len(infos) - 1, MAX_PICTURES).astype(int)):
        objects = [
            dict(
                category_id=each['bbox_label'],
                bbox=[*each['bbox'][:2], *np.subtract(each['bbox'][2:], each['bbox'][:2])],
                segmentation=each.get('mask'),
                iscrowd=each.get('ignore_flag', 0),
            )
            for each in infos[i]['instances']
        ]
        picture = draw.picture(i, f'{len(objects)} objects', objects, [])
        picture.predicted = None
        evaluation.doubts.setdefault('Samples of the training data', []).append(picture)

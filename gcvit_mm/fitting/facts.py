"""What the decisions of a fit depend on: the data and the machine."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import read_config
from ..datasets.check import Report, check_datasets, print_reports
from ..errors import UserError
from ..formats import Dataset
from ..zoo import CONFIGS

BASES = {
    'detection': 'photos_boxes',
    'instances': 'photos_instances',
    'segmentation': 'photos_label_maps',
    'classification': 'photos_classes',
}
"""The base config of each task with its data pipelines."""
SAMPLED = 200  # images that are looked at


@dataclass
class Facts:
    """A data set and the machine that trains on it.

    Attributes:
        task: One of ``formats.TASKS``.
        classes: Names of the classes.
        images: Number of images by split.
        objects: Number of objects by split, for boxes and masks.
        long_sides: Longer side of each image in pixels.
        box_sides: Square root of the area of each box, as a share of the longer side of an image.
        per_image: Number of objects of each image that has some.
        rarity: The share of the training images in which each class is.
        grey: Whether all images that were looked at are grey.
        tops: How many standard errors the upper halves of images differ from the lower ones, in
            brightness and in texture.
        gpus: Number of GPUs to train on, 0 for a CPU.
    """

    task: str
    classes: tuple[str, ...]
    images: dict[str, int]
    objects: dict[str, int] = field(default_factory=dict)
    long_sides: list[float] = field(default_factory=list)
    box_sides: list[float] = field(default_factory=list)
    per_image: list[float] = field(default_factory=list)
    rarity: dict[str, float] = field(default_factory=dict)
    grey: bool = False
    tops: tuple[float, float] | None = None
    gpus: int = 0


def read_reports(data: Dataset) -> list[Report]:
    """Check the data by the rules of ``tools/check_dataset.py``.

    Raises:
        UserError: They have an error, which is printed with the others before.
    """
    cfg = read_config(CONFIGS / '_base_' / f'{BASES[data.task]}.py')
    cfg.model = {}
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.update(data.settings(split))
    if data.task in ('detection', 'instances'):
        cfg.val_evaluator.ann_file = str(data.ann_file('val'))
    reports = check_datasets(cfg, ('train', 'val'))
    for report in reports:
        # Notes are for ``gcvit-mm check-dataset``.
        report.problems = {key: value for key, value in report.problems.items() if key[0] != 'note'}
    if any(report.problems for report in reports):
        print_reports(reports)
    errors = sum(report.count('error') for report in reports)
    if errors:
        raise UserError(f'the data have {errors} error(s), listed above: correct them first')
    return reports


def find_facts(data: Dataset, reports: list[Report], gpus: int) -> Facts:
    """Collect the facts about checked data."""
    train, val = reports
    widths, heights = (train.sizes.get(f'image {name}', []) for name in ('width', 'height'))
    long_sides = [float(max(size)) for size in zip(widths, heights, strict=True)]
    typical = float(np.median(long_sides)) if long_sides else 1.0
    boxes = zip(train.sizes.get('box width', []), train.sizes.get('box height', []), strict=True)
    paths = list(train.digests)
    sampled = [
        Path(paths[i]) for i in np.linspace(0, len(paths) - 1, min(SAMPLED, len(paths))).astype(int)
    ]
    small = [_small(path) for path in sampled]
    return Facts(
        task=data.task,
        classes=data.classes,
        images={'train': len(train.digests), 'val': len(val.digests)},
        objects={r.name: r.used['objects']['used'] for r in reports if r.used},
        long_sides=long_sides,
        box_sides=[(width * height) ** 0.5 / typical for width, height in boxes],
        per_image=train.sizes.get('objects an image', []),
        rarity={
            name: counts.get('images', 0) / max(len(paths), 1)
            for name, counts in train.classes.items()
        },
        grey=all((pixels.max(2) - pixels.min(2)).max() < 3 for pixels in small),
        tops=_tops(small),
        gpus=gpus,
    )


def _small(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.draft('RGB', (64, 64))
        return np.asarray(image.convert('RGB').resize((64, 64)), float)


def _tops(images: list[np.ndarray]) -> tuple[float, float] | None:
    """Compare upper and lower halves: light comes from above, and skies have little texture."""
    if len(images) < 100:
        return None
    differences = []
    for pixels in images:
        grey = pixels.mean(2)
        spread = grey.std() + 1e-6
        upper, lower = np.split(grey, 2)
        textures = [np.abs(np.diff(half, axis=1)).mean() for half in (upper, lower)]
        differences.append(
            [(upper.mean() - lower.mean()) / spread, (textures[0] - textures[1]) / spread]
        )
    values = np.array(differences)
    brightness, texture = values.mean(0) / (values.std(0) / len(values) ** 0.5 + 1e-9)
    return float(brightness), float(texture)

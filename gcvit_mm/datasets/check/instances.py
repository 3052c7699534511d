"""Checks of COCO files: ids, categories, references, and which images and objects are used."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from ...errors import UserError
from .coco_file import FIELDS, brief, check_categories, read_coco, wrong_fields
from .images import ReadImage, add_image, in_parallel, missing_files, read_image, relative
from .objects import MARGIN, MISFIT, are_plain, check_object, why_skipped
from .report import Finding, Report

COUNTED = 100
"""The predictions of an image that COCO's average precision counts."""


@dataclass
class Task:
    """One image with its annotations."""

    path: str
    root: str | None
    entry: dict
    annotations: list[dict]  # those that are checked one by one
    needs_masks: bool

    @property
    def place(self) -> str:
        return relative(self.path, self.root)

    @property
    def size(self) -> tuple[int, int]:
        return self.entry['width'], self.entry['height']


@dataclass
class Arrays:
    """What is checked of all objects at once, because a file may have a million of them."""

    images: np.ndarray  # index of the image of each object; -1 if the file does not list it
    categories: np.ndarray  # its category id
    boxes: np.ndarray  # (objects, 4): x, y, width, height
    crowd: np.ndarray
    sizes: np.ndarray  # (objects, 2): width and height of its image

    @classmethod
    def of(cls, images: list[dict], annotations: list[dict]) -> 'Arrays':
        places = {image['id']: i for i, image in enumerate(images)}
        sizes = np.array([*((image['width'], image['height']) for image in images), (0, 0)])
        owners = np.array([places.get(a['image_id'], -1) for a in annotations], int)
        return cls(
            owners,
            np.array([a['category_id'] for a in annotations], int),
            np.array([a['bbox'] for a in annotations], float).reshape(-1, 4),
            np.array([bool(a.get('iscrowd')) for a in annotations], bool),
            sizes[owners],
        )


def check_instances(
    dataset: BaseDataset,
    loader: str,
    report: Report,
    *,
    needs_masks: bool,
    needs_annotations: bool = True,
    pixels: bool = True,
) -> None:
    """Check mmdet's ``CocoDataset``, not initialised.

    ``needs_masks`` and ``needs_annotations`` say whether objects without a mask and a file without
    annotations are errors. ``pixels`` reads images and draws masks, which takes most of the time.
    """
    content = read_coco(dataset.ann_file, need_annotations=needs_annotations)
    entries = {key: _valid_entries(key, content.get(key, []), report) for key in FIELDS}
    images, annotations = entries['images'], entries['annotations']
    _check_ids(images, annotations, report)
    known, arrays = _check_references(images, annotations, entries['categories'], report)
    classes = _check_classes(dataset, loader, entries, report)
    _check_repeated(known, arrays, report)
    if not _check_coordinates(arrays, report):
        return
    single = known
    if not pixels:
        plain = are_plain(known, arrays.boxes, arrays.sizes, needs_masks=needs_masks)
        single = [*compress(known, ~plain)]
    tasks = _tasks(dataset, images, single, needs_masks)
    own = arrays.images[np.isin(arrays.categories, [*classes])]
    objects = np.bincount(own, minlength=len(images)).tolist()
    if pixels:
        results: Any = in_parallel(_examine, tasks, report.name)
    else:
        missing = missing_files(task.path for task in tasks)
        results = ((missing.get(task.path, ''), [*_check_objects(task)]) for task in tasks)
    for task, count, (image, findings) in zip(tasks, objects, results, strict=True):
        report.extend(findings)
        if image:
            add_image(report, image, task.place)
        if 'annotations' in content and not count:
            report.add('note', 'image without objects', task.place)
    misfits = len(report.problems.get(('warning', MISFIT), ()))
    if misfits > len(known) / 2:
        what = 'most boxes do not fit their masks: write x and y of the upper left corner'
        report.add('error', what, f'{misfits} of {len(known)} objects')
    if pixels:
        _check_folder(dataset, images, report)
    if 'annotations' in content:
        _count(arrays, images, classes, report)
        _count_used(dataset, tasks, objects, classes, report)
    report.names = {image['id']: image['file_name'] for image in images}
    report.content = {} if pixels else content


def _valid_entries(key: str, entries: list, report: Report) -> list[dict]:
    """The images, annotations or categories whose fields are all present and valid."""
    if not wrong_fields(key, *entries):
        return entries
    valid = []
    for i, entry in enumerate(entries):
        wrong = wrong_fields(key, entry)
        for name in wrong:
            what = f'{key}: {name} is not {FIELDS[key][name].expected}'
            report.add('error', what, f'{key}[{i}]: {brief(entry)}')
        if not wrong:
            valid.append(entry)
    return valid


def _check_ids(images: list[dict], annotations: list[dict], report: Report) -> None:
    for entry in _repeated(images, lambda image: image['id']):
        what = 'duplicate image id: number the images from 1, in the annotations too'
        report.add('error', what, f'id {entry["id"]}: {entry["file_name"]}')
    for entry in _repeated(images, lambda image: image['file_name']):
        report.add('warning', 'image listed twice', f'{entry["file_name"]}: id {entry["id"]}')
    repeated = list(_repeated(annotations, lambda annotation: annotation['id']))
    for entry in repeated:
        what = f'duplicate annotation ids ({len(repeated)} in all): number them from 1 in the file'
        report.add('error', what, f'annotation {entry["id"]}')


def _check_repeated(annotations: list[dict], arrays: 'Arrays', report: Report) -> None:
    # Equal objects have equal sums, which are compared much faster.
    sums = arrays.images + arrays.categories / 7 + arrays.boxes @ (0.3, 0.7, 1.1, 1.3)
    _, kinds, times = np.unique(sums, return_inverse=True, return_counts=True)
    for entry in _repeated([*compress(annotations, times[kinds] > 1)], _object_key):
        report.add('note', 'object annotated twice', f'annotation {entry["id"]}')


def _repeated(entries: list[dict], key: Callable[[dict], Any]) -> Iterator[dict]:
    seen = set()
    for entry in entries:
        value = key(entry)
        if value in seen:
            yield entry
        seen.add(value)


def _object_key(annotation: dict) -> tuple:
    return annotation['image_id'], annotation['category_id'], str(annotation['bbox'])


def _check_references(
    images: list[dict], annotations: list[dict], categories: list[dict], report: Report
) -> tuple[list[dict], Arrays]:
    """The annotations whose image and category exist."""
    arrays = Arrays.of(images, annotations)
    of_image = arrays.images >= 0
    known = of_image & np.isin(arrays.categories, [category['id'] for category in categories])
    for i in np.flatnonzero(~known):
        kind = 'category' if of_image[i] else 'image'
        where = f'annotation {annotations[i]["id"]}: {annotations[i][f"{kind}_id"]}'
        report.add('error', f'annotation of an unknown {kind}', where)
    if known.all():
        return annotations, arrays
    annotations = [*compress(annotations, known)]
    return annotations, Arrays.of(images, annotations)


def _check_classes(
    dataset: BaseDataset, loader: str, entries: dict[str, list[dict]], report: Report
) -> dict[int, str]:
    """Compare classes with categories, and return the class names by category id."""
    categories = entries['categories']
    objects = Counter(annotation['category_id'] for annotation in entries['annotations'])
    for i, times in Counter(category['id'] for category in categories).items():
        if times > 1:
            report.add('error', 'duplicate category id', f'{i}: {times} categories')
    for name, times in Counter(category['name'] for category in categories).items():
        if times > 1:
            ids = [category['id'] for category in categories if category['name'] == name]
            counts = ', '.join(f'id {i} has {objects[i]} objects' for i in ids)
            what = 'duplicate category name: remove or rename one of them'
            report.add('error', what, f'{name}: {counts}')
            return {}
    classes = dataset.metainfo['classes']
    try:
        for name in check_categories(loader, dataset.ann_file, entries, classes):
            report.add('note', 'category is not a class: its objects are skipped', name)
    except UserError as error:
        report.add_mismatch(error)
    return {category['id']: category['name'] for category in categories
            if category['name'] in classes}  # fmt: skip


def _tasks(
    dataset: BaseDataset, images: list[dict], annotations: list[dict], needs_masks: bool
) -> list[Task]:
    folder = dataset.data_prefix.get('img', '')
    by_image = defaultdict(list)
    for annotation in annotations:
        by_image[annotation['image_id']].append(annotation)
    return [
        Task(
            os.path.join(folder, entry['file_name']),
            dataset.data_root,
            entry,
            by_image[entry['id']],
            needs_masks,
        )
        for entry in images
    ]


def _examine(task: Task) -> tuple[ReadImage | str, list[Finding]]:
    image = read_image(task.path)
    findings = [*_check_objects(task, draw=True)]
    width, height = task.size
    if isinstance(image, ReadImage) and task.size != (image.width, image.height):
        place = f'{task.place}: {width} x {height}, file {image.width} x {image.height}'
        findings.append(Finding('error', 'width and height differ from those of the file', place))
    return image, findings


def _check_objects(task: Task, *, draw: bool = False) -> Iterator[Finding]:
    for annotation in task.annotations:
        place = f'{task.place}: annotation {annotation["id"]}'
        problems = check_object(annotation, *task.size, needs_mask=task.needs_masks, draw=draw)
        for severity, what, detail in problems:
            yield Finding(severity, what, f'{place}{detail and ": "}{detail}')


def _check_coordinates(arrays: Arrays, report: Report) -> bool:
    """Whether all boxes together look like x, y, width, height in pixels."""
    boxes, sizes = arrays.boxes, arrays.sizes
    if not len(boxes):
        return True
    ends = boxes[:, :2] + boxes[:, 2:]
    if ends.max() < 1.1 and boxes.max() <= 1:
        what = 'boxes are shares of the image: multiply them by its width and height'
        report.add('error', what, str(boxes[0].tolist()))
        return False
    beyond = (ends > sizes + MARGIN).any(1)
    inside = (boxes[:, 2:] <= sizes + MARGIN).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
    if inside and beyond.mean() > 0.2:
        what = 'boxes are the corners x1, y1, x2, y2: write x, y, width, height'
        report.add('error', what, str(boxes[beyond][0].tolist()))
        return False
    return True


def _check_folder(dataset: BaseDataset, images: list[dict], report: Report) -> None:
    """Report images in the folder that the annotation file does not list."""
    folder = dataset.data_prefix.get('img', '')
    listed = {os.path.normpath(image['file_name']) for image in images}
    suffixes = {os.path.splitext(name)[1] for name in listed}
    for root, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = os.path.join(root, name)
            inside = os.path.relpath(path, folder)
            if inside not in listed and os.path.splitext(name)[1] in suffixes:
                place = relative(path, dataset.data_root)
                report.add('note', 'image is not listed in the annotations', place)


def _count(arrays: Arrays, images: list[dict], classes: dict[int, str], report: Report) -> None:
    """Count objects and images of each class, and collect the sizes of boxes."""
    own = np.isin(arrays.categories, [*classes])
    objects = own & ~arrays.crowd
    ids, numbers = np.unique(arrays.categories[own], return_inverse=True)
    pairs = np.unique(numbers * len(images) + arrays.images[own])  # faster than along an axis
    kinds = {
        'objects': _tally(arrays.categories[objects]),
        'crowds': _tally(arrays.categories[own & arrays.crowd]),
        'images': _tally(ids[pairs // len(images)]),
    }
    counts: dict[str, dict[str, float]] = {
        name: {kind: tally[i] for kind, tally in kinds.items()} for i, name in classes.items()
    }
    if objects.any():
        report.sizes['box width'], report.sizes['box height'] = arrays.boxes[objects, 2:].T.tolist()
    per_image = _tally(arrays.images[objects])
    report.sizes['objects an image'] = [*per_image.values()]
    crowded = [(images[i]['id'], count) for i, count in per_image.items() if count > COUNTED]
    for image, count in crowded * (report.name != 'train'):
        what = f'more than {COUNTED} objects in an image: AP counts {COUNTED} predictions of it'
        report.add('warning', what, f'image id {image}: {count}')
    for name, row in counts.items():
        if not row['objects']:
            report.add('warning', 'class without objects', name)
    report.classes = counts


def _tally(values: np.ndarray) -> Counter[int]:
    found, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _count_used(
    dataset: BaseDataset,
    tasks: list[Task],
    numbers: list[int],
    classes: dict[int, str],
    report: Report,
) -> None:
    """Count the images and objects that are left after what mmdet skips."""
    skipped: Counter[str] = Counter()
    objects = crowds = images = 0
    filters = {} if dataset.test_mode else dataset.filter_cfg or {}
    smallest, no_empty = filters.get('min_size', 0), filters.get('filter_empty_gt', False)
    for task, left in zip(tasks, numbers, strict=True):
        kept = min(task.size) >= smallest and (left > 0 or not no_empty)
        images += kept
        for annotation in task.annotations:
            if annotation['category_id'] not in classes:
                continue
            reason = why_skipped(annotation, *task.size, needs_mask=task.needs_masks)
            crowd = not reason and bool(annotation.get('iscrowd'))
            skipped.update([reason] * bool(reason))
            crowds += crowd
            left -= crowd or bool(reason)
        if kept:
            objects += left
        elif left:
            skipped[f'in images with a side below {smallest}'] += left
    total = objects + crowds + skipped.total()
    reasons = [f'{count} {reason}' for reason, count in skipped.most_common()]
    reasons += [f'{crowds} crowds'] * bool(crowds)
    report.used = {
        'images': {'file': len(tasks), 'used': images},
        'objects': {'file': total, 'used': objects, 'skipped': dict(skipped), 'crowds': crowds},
    }
    if not objects and classes:
        what = f'no object is left of {total}' if total else 'no object of any class'
        report.add('error', what, f'{dataset.ann_file}: {", ".join(reasons) or "check classes"}')
    elif objects < (total - crowds) / 2:
        report.add('warning', f'{objects} of {total} objects are used', ', '.join(reasons))

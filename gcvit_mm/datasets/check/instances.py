"""Checks of COCO annotations: ids, categories, boxes, polygons and run-length encodings."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from pycocotools import mask as mask_utils

from ...errors import UserError
from ..coco_format import FIELDS, brief, finite, wrong_fields
from ..preflight import check_categories, read_coco
from .images import ReadImage, add_image, in_parallel, read_image, relative, unreadable
from .report import Finding, Report

# In pixels. COCO's own boxes cross the image border, and differ from their masks, by less.
MARGIN = 2
# Relative. Less than 1 % of COCO's own areas differ more from those of their masks.
AREA_TOLERANCE = 0.1


@dataclass
class Task:
    """One image with its annotations."""

    path: str
    place: str
    entry: dict
    annotations: list[dict]
    needs_masks: bool


def check_instances(
    dataset: BaseDataset, loader: str, report: Report, *, needs_masks: bool
) -> None:
    """Check a data set in COCO's format.

    Args:
        dataset: mmdet's ``CocoDataset``, not initialised.
        loader: Key of the data loader, such as 'train_dataloader'.
        report: The report to add problems to.
        needs_masks: Whether objects without a mask are an error.

    Raises:
        UserError: The annotation file is not in COCO's format.
    """
    # Lists of test images may have no annotations.
    content = read_coco(dataset.ann_file, need_annotations=loader != 'test_dataloader')
    classes = _check_classes(dataset, loader, content, report)
    images = _valid_entries('images', content['images'], report)
    annotations = _valid_entries('annotations', content.get('annotations', []), report)
    _check_ids(images, annotations, report)
    known = _check_references(images, annotations, content['categories'], report)
    tasks = _tasks(dataset, images, known, needs_masks)
    for task, (image, findings) in zip(
        tasks, in_parallel(_examine, tasks, report.name), strict=True
    ):
        report.extend(findings)
        if isinstance(image, ReadImage):
            add_image(report, image)
        used = [a for a in task.annotations if a['category_id'] in classes]
        if 'annotations' in content and not used:
            report.add('note', 'image without objects', task.place)
    _check_folder(dataset, images, report)
    if 'annotations' in content:
        _count(known, classes, report)


def _check_classes(
    dataset: BaseDataset, loader: str, content: dict, report: Report
) -> dict[int | str, str]:
    """Compare classes with categories, and return the class names by category id."""
    classes = dataset.metainfo['classes']
    classes = (classes,) if isinstance(classes, str) else classes
    categories = content['categories']
    for key in ('id', 'name'):
        for value, times in Counter(category[key] for category in categories).items():
            if times > 1:
                report.add('error', f'duplicate category {key}', f'{value}: {times} categories')
    try:
        for name in check_categories(loader, dataset.ann_file, content, classes):
            report.add('note', 'category is not a class: its objects are skipped', name)
    except UserError as error:
        report.add_mismatch(error)
    names = {category['name']: category['id'] for category in categories}
    return {names.get(name, f'no category {name}'): name for name in classes}


def _valid_entries(key: str, entries: list, report: Report) -> list[dict]:
    """The images or annotations whose fields are all present and valid."""
    valid = []
    for i, entry in enumerate(entries):
        wrong = wrong_fields(key, entry)
        for name in wrong:
            what = f'{key}: {name} is not {FIELDS[key][name][1]}'
            report.add('error', what, f'{key}[{i}]: {brief(entry)}')
        if not wrong:
            valid.append(entry)
    return valid


def _check_ids(images: list[dict], annotations: list[dict], report: Report) -> None:
    for entry in _repeated(images, lambda image: image['id']):
        report.add('error', 'duplicate image id', f'id {entry["id"]}: {entry["file_name"]}')
    for entry in _repeated(images, lambda image: image['file_name']):
        report.add('warning', 'image listed twice', f'{entry["file_name"]}: id {entry["id"]}')
    for entry in _repeated(annotations, lambda annotation: annotation['id']):
        report.add('error', 'duplicate annotation id', f'annotation {entry["id"]}')
    for entry in _repeated(annotations, _object_key):
        report.add('note', 'object annotated twice', f'annotation {entry["id"]}')
    if any(annotation['id'] == 0 for annotation in annotations):
        what = "annotation id 0: COCO's evaluation does not count matches with it"
        report.add('warning', what, 'annotation 0')


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
) -> list[dict]:
    """The annotations whose image and category exist."""
    image_ids = {image['id'] for image in images}
    category_ids = {category['id'] for category in categories}
    known = []
    for annotation in annotations:
        place = f'annotation {annotation["id"]}'
        image_id, category_id = annotation['image_id'], annotation['category_id']
        if image_id not in image_ids:
            report.add('error', 'annotation of an unknown image', f'{place}: {image_id}')
        elif category_id not in category_ids:
            report.add('error', 'annotation of an unknown category', f'{place}: {category_id}')
        else:
            known.append(annotation)
    return known


def _tasks(
    dataset: BaseDataset, images: list[dict], annotations: list[dict], needs_masks: bool
) -> list[Task]:
    folder = dataset.data_prefix.get('img', '')
    by_image = defaultdict(list)
    for annotation in annotations:
        by_image[annotation['image_id']].append(annotation)
    tasks = []
    for entry in images:
        path = os.path.join(folder, entry['file_name'])
        place = relative(path, dataset.data_root)
        tasks.append(Task(path, place, entry, by_image[entry['id']], needs_masks))
    return tasks


def _examine(task: Task) -> tuple[ReadImage | str, list[Finding]]:
    findings: list[Finding] = []
    image = read_image(task.path)
    width, height = task.entry['width'], task.entry['height']
    if isinstance(image, str):
        findings.append(unreadable(image, task.place))
    elif (width, height) != (image.width, image.height):
        place = f'{task.place}: {width} x {height}, file {image.width} x {image.height}'
        findings.append(Finding('error', 'width and height differ from those of the file', place))
    for annotation in task.annotations:
        place = f'{task.place}: annotation {annotation["id"]}'
        problems = [*_check_box(annotation, width, height)]
        problems += _check_mask(annotation, width, height, task.needs_masks)
        for severity, what, detail in problems:
            findings.append(Finding(severity, what, f'{place}{detail and ": "}{detail}'))
    return image, findings


def _check_box(annotation: dict, width: int, height: int) -> Iterator[Finding]:
    box = annotation['bbox']
    if not finite(box, 4):
        yield Finding('error', 'box is not four finite numbers', str(box))
        return
    x, y, w, h = box
    if w < 0 or h < 0:
        yield Finding('error', 'box of negative width or height', str(box))
    elif w < 1 or h < 1:
        yield Finding('warning', 'box of less than a pixel: mmdet skips it', str(box))
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        yield Finding('error', 'box outside the image', str(box))
    elif min(x, y, width - x - w, height - y - h) < -MARGIN:
        what = 'box crosses the image border: it must be x, y, width, height'
        yield Finding('warning', what, str(box))
    if not annotation['area'] > 0:
        what = 'area is not positive: mmdet skips the object'
        yield Finding('warning', what, str(annotation['area']))
    if annotation.get('iscrowd', 0) not in (0, 1):
        yield Finding('error', 'iscrowd is neither 0 nor 1', str(annotation['iscrowd']))


def _check_mask(annotation: dict, width: int, height: int, needed: bool) -> Iterator[Finding]:
    segmentation = annotation.get('segmentation')
    if not segmentation:
        if needed:
            yield Finding('error', 'no segmentation, but the config trains masks', '')
        return
    if isinstance(segmentation, list):
        if annotation.get('iscrowd') == 1:
            yield Finding('warning', "crowd given as polygons, not as COCO's run lengths", '')
        findings, rle = _read_polygons(segmentation, width, height)
    elif isinstance(segmentation, dict):
        findings, rle = _read_run_lengths(segmentation, width, height)
    else:
        findings = [Finding('error', 'segmentation is neither polygons nor run lengths', '')]
        rle = None
    yield from findings
    if rle is not None:
        yield from _compare_with_mask(annotation, rle)


def _read_polygons(polygons: list, width: int, height: int) -> tuple[list[Finding], dict | None]:
    """Return the problems of polygons, and the encoded mask of the valid ones, if any."""
    findings, valid, short = [], [], []
    for polygon in polygons:
        if not isinstance(polygon, list):
            what = 'segmentation is not a list of polygons, each [x, y, x, y, ...]'
            return [Finding('error', what, brief(polygons))], None
        if not finite(polygon):
            findings.append(Finding('error', 'polygon with values that are not finite numbers', ''))
        elif len(polygon) % 2:
            what = 'polygon of an odd number of coordinates'
            findings.append(Finding('error', what, f'{len(polygon)} numbers'))
        elif len(polygon) < 6:
            short.append(f'{len(polygon) // 2} points')
        else:
            valid.append(np.array(polygon, float).reshape(-1, 2))
    what = 'polygon of fewer than 3 points: mmdet skips it'
    findings += [Finding('warning' if valid else 'error', what, place) for place in short]
    if not valid:
        return findings, None
    points = np.concatenate(valid)
    size = np.array([width, height])
    if (points.max(0) <= 0).any() or (points.min(0) >= size).any():
        return [*findings, Finding('error', 'polygons outside the image', '')], None
    beyond = max(float(-points.min()), float((points - size).max()))
    if beyond > MARGIN:
        what = 'polygon crosses the image border'
        findings.append(Finding('warning', what, f'by {beyond:.1f} px'))
    # The rasteriser would run out of memory for points far outside the image.
    clipped = [np.clip(polygon, -size, 2 * size).ravel().tolist() for polygon in valid]
    rle = mask_utils.merge(mask_utils.frPyObjects(clipped, height, width))
    return findings, rle


def _read_run_lengths(
    segmentation: dict, width: int, height: int
) -> tuple[list[Finding], dict | None]:
    """Return the problems of a run-length encoding, and the mask if there are none."""
    size, counts = segmentation.get('size'), segmentation.get('counts')
    if size != [height, width]:
        what = 'size of run lengths is not height, width of the image'
        return [Finding('error', what, f'{size}, image {[height, width]}')], None
    runs = _unpack(counts) if isinstance(counts, str) else counts
    # pycocotools reads out of bounds if the runs do not fill the image.
    if (
        not isinstance(runs, list)
        or not all(isinstance(run, int) and run >= 0 for run in runs)
        or sum(runs) != width * height
    ):
        return [Finding('error', 'run lengths do not decode to the size of the image', '')], None
    return [], mask_utils.frPyObjects({'size': size, 'counts': runs}, height, width)


def _unpack(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; return None if the text is invalid.

    A character minus '0' has six bits: five of a number, lowest first, and a flag for continuation.
    The fifth bit of the last character is the sign. From the fourth number on, each is stored as
    its difference to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else runs


def _compare_with_mask(annotation: dict, rle: dict) -> Iterator[Finding]:
    pixels, area = int(mask_utils.area(rle)), annotation['area']
    if not pixels:
        yield Finding('warning', 'mask covers no pixel', '')
        return
    if abs(pixels - area) > max(AREA_TOLERANCE * area, 10):
        yield Finding('note', 'area differs from that of the mask', f'{area:g}, mask {pixels}')
    box = annotation['bbox']
    if finite(box, 4):
        tight = mask_utils.toBbox(rle).tolist()
        corners = [(x, y, x + w, y + h) for x, y, w, h in (box, tight)]
        if max(abs(a - b) for a, b in zip(*corners, strict=True)) > MARGIN:
            yield Finding('note', 'box is not tight around the mask', f'{box}, mask {tight}')


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


def _count(annotations: list[dict], classes: dict[int | str, str], report: Report) -> None:
    """Count objects and images of each class, and collect the sizes of boxes."""
    counts = {name: {'objects': 0, 'crowds': 0, 'images': 0} for name in classes.values()}
    images: dict[str, set] = defaultdict(set)
    per_image: Counter = Counter()
    for annotation in annotations:
        if annotation['category_id'] not in classes:
            continue
        name = classes[annotation['category_id']]
        images[name].add(annotation['image_id'])
        if annotation.get('iscrowd'):
            counts[name]['crowds'] += 1
            continue
        counts[name]['objects'] += 1
        per_image[annotation['image_id']] += 1
        if finite(annotation['bbox'], 4):
            report.sizes.setdefault('box width', []).append(annotation['bbox'][2])
            report.sizes.setdefault('box height', []).append(annotation['bbox'][3])
    report.sizes['objects an image'] = list(per_image.values())
    for name, row in counts.items():
        row['images'] = len(images[name])
        if not row['objects']:
            report.add('warning', 'class without objects', name)
    report.classes = {name: dict(row) for name, row in counts.items()}

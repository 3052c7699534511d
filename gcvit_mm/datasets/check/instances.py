"""Checks of objects in COCO's format: ids, categories, boxes, polygons and run lengths."""

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

# Pixels: COCO's own boxes and polygons leave the image, and each other, by less.
MARGIN = 2
# A share; of COCO's own annotations, fewer than 1 % differ more from their masks.
AREA_TOLERANCE = 0.1


@dataclass
class Task:
    """One image with what is said of it."""

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
        loader: 'train_dataloader' and so on.
        report: Receives what is found.
        needs_masks: Whether objects without a mask are of no use.

    Raises:
        UserError: The annotation file is none of COCO's.
    """
    # Lists of test images come without annotations.
    content = read_coco(dataset.ann_file, need_annotations=loader != 'test_dataloader')
    classes = _check_classes(dataset, loader, content, report)
    images = _whole_entries('images', content['images'], report)
    annotations = _whole_entries('annotations', content.get('annotations', []), report)
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
    """Compare classes and categories; give the names of the classes by category id."""
    classes = dataset.metainfo['classes']
    classes = (classes,) if isinstance(classes, str) else classes
    categories = content['categories']
    for key in ('id', 'name'):
        for value, times in Counter(category[key] for category in categories).items():
            if times > 1:
                report.add('error', f'categories of the same {key}', f'{value}: {times} categories')
    try:
        for name in check_categories(loader, dataset.ann_file, content, classes):
            report.add('note', 'category is no class of the config: its objects are left out', name)
    except UserError as error:
        report.add_misfit(error)
    names = {category['name']: category['id'] for category in categories}
    return {names.get(name, f'no category {name}'): name for name in classes}


def _whole_entries(key: str, entries: list, report: Report) -> list[dict]:
    """The images or annotations that have all they need."""
    whole = []
    for i, entry in enumerate(entries):
        wrong = wrong_fields(key, entry)
        for name in wrong:
            what = f'{key}: {name} is not {FIELDS[key][name][1]}'
            report.add('error', what, f'{key}[{i}]: {brief(entry)}')
        if not wrong:
            whole.append(entry)
    return whole


def _check_ids(images: list[dict], annotations: list[dict], report: Report) -> None:
    for entry in _repeated(images, lambda image: image['id']):
        report.add('error', 'two images of the same id', f'id {entry["id"]}: {entry["file_name"]}')
    for entry in _repeated(images, lambda image: image['file_name']):
        report.add('warning', 'image listed twice', f'{entry["file_name"]}: id {entry["id"]}')
    for entry in _repeated(annotations, lambda annotation: annotation['id']):
        report.add('error', 'two annotations of the same id', f'annotation {entry["id"]}')
    for entry in _repeated(annotations, _object_key):
        report.add('note', 'object annotated twice', f'annotation {entry["id"]}')
    if any(annotation['id'] == 0 for annotation in annotations):
        what = "annotation id 0: COCO's evaluation takes a match with it for none"
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
    """The annotations whose image and category are listed."""
    image_ids = {image['id'] for image in images}
    category_ids = {category['id'] for category in categories}
    known = []
    for annotation in annotations:
        place = f'annotation {annotation["id"]}'
        image_id, category_id = annotation['image_id'], annotation['category_id']
        if image_id not in image_ids:
            report.add('error', 'annotation of an image that is not listed', f'{place}: {image_id}')
        elif category_id not in category_ids:
            report.add('error', 'annotation of an unknown category', f'{place}: {category_id}')
        else:
            known.append(annotation)
    return known


def _tasks(
    dataset: BaseDataset, images: list[dict], annotations: list[dict], needs_masks: bool
) -> list[Task]:
    folder = dataset.data_prefix.get('img', '')
    of_image = defaultdict(list)
    for annotation in annotations:
        of_image[annotation['image_id']].append(annotation)
    tasks = []
    for entry in images:
        path = os.path.join(folder, entry['file_name'])
        place = relative(path, dataset.data_root)
        tasks.append(Task(path, place, entry, of_image[entry['id']], needs_masks))
    return tasks


def _examine(task: Task) -> tuple[ReadImage | str, list[Finding]]:
    findings: list[Finding] = []
    image = read_image(task.path)
    width, height = task.entry['width'], task.entry['height']
    if isinstance(image, str):
        findings.append(unreadable(image, task.place))
    elif (width, height) != (image.width, image.height):
        place = f'{task.place}: {width} x {height}, file {image.width} x {image.height}'
        findings.append(Finding('error', "width and height are not the image's", place))
    for annotation in task.annotations:
        place = f'{task.place}: annotation {annotation["id"]}'
        found = [*_check_box(annotation, width, height)]
        found += _check_mask(annotation, width, height, task.needs_masks)
        for severity, what, detail in found:
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
        yield Finding('warning', 'box of less than a pixel: mmdet leaves it out', str(box))
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        yield Finding('error', 'box outside the image', str(box))
    elif min(x, y, width - x - w, height - y - h) < -MARGIN:
        what = 'box reaches over the border: it must be x, y, width, height'
        yield Finding('warning', what, str(box))
    if not annotation['area'] > 0:
        what = 'area is not positive: mmdet leaves the object out'
        yield Finding('warning', what, str(annotation['area']))
    if annotation.get('iscrowd', 0) not in (0, 1):
        yield Finding('error', 'iscrowd is neither 0 nor 1', str(annotation['iscrowd']))


def _check_mask(annotation: dict, width: int, height: int, needed: bool) -> Iterator[Finding]:
    segmentation = annotation.get('segmentation')
    if not segmentation:
        if needed:
            yield Finding('error', 'no segmentation, which the config trains on', '')
        return
    if isinstance(segmentation, list):
        if annotation.get('iscrowd') == 1:
            yield Finding('warning', 'crowd drawn as polygons: COCO has run lengths', '')
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
    """Give what is wrong with polygons, and their mask, encoded, if some are right."""
    findings, right, short = [], [], []
    for polygon in polygons:
        if not isinstance(polygon, list):
            what = 'segmentation is not a list of polygons, each [x, y, x, y, ...]'
            return [Finding('error', what, brief(polygons))], None
        if not finite(polygon):
            findings.append(Finding('error', 'polygon with what is no finite number', ''))
        elif len(polygon) % 2:
            what = 'polygon of an odd number of coordinates'
            findings.append(Finding('error', what, f'{len(polygon)} numbers'))
        elif len(polygon) < 6:
            short.append(f'{len(polygon) // 2} points')
        else:
            right.append(np.array(polygon, float).reshape(-1, 2))
    what = 'polygon of fewer than 3 points: mmdet leaves it out'
    findings += [Finding('warning' if right else 'error', what, place) for place in short]
    if not right:
        return findings, None
    points = np.concatenate(right)
    size = np.array([width, height])
    if (points.max(0) <= 0).any() or (points.min(0) >= size).any():
        return [*findings, Finding('error', 'polygons outside the image', '')], None
    beyond = max(float(-points.min()), float((points - size).max()))
    if beyond > MARGIN:
        what = 'polygon reaches over the border'
        findings.append(Finding('warning', what, f'by {beyond:.1f} px'))
    # Far-off points would take the rasteriser more memory than there is.
    near = [np.clip(polygon, -size, 2 * size).ravel().tolist() for polygon in right]
    rle = mask_utils.merge(mask_utils.frPyObjects(near, height, width))
    return findings, rle


def _read_run_lengths(
    segmentation: dict, width: int, height: int
) -> tuple[list[Finding], dict | None]:
    """Give what is wrong with a mask in COCO's run lengths, and the mask if nothing is."""
    size, counts = segmentation.get('size'), segmentation.get('counts')
    if size != [height, width]:
        what = "size of run lengths is not the image's: it must be height, width"
        return [Finding('error', what, f'{size}, image {[height, width]}')], None
    runs = _unpack(counts) if isinstance(counts, str) else counts
    # pycocotools reads beyond its memory where the runs do not fill the image.
    if (
        not isinstance(runs, list)
        or not all(isinstance(run, int) and run >= 0 for run in runs)
        or sum(runs) != width * height
    ):
        return [Finding('error', 'run lengths do not decode to the size of the image', '')], None
    return [], mask_utils.frPyObjects({'size': size, 'counts': runs}, height, width)


def _unpack(text: str) -> list[int] | None:
    """Read COCO's compressed run lengths; None where the text is none.

    Six bits a character from '0' on: five of a number, lowest first, then whether it goes on; the
    fifth bit of its last character is the sign. From the fourth number on, each is the difference
    to the last but one.
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
        yield Finding('note', 'area is not that of the mask', f'{area:g}, mask {pixels}')
    box = annotation['bbox']
    if finite(box, 4):
        tight = mask_utils.toBbox(rle).tolist()
        corners = [(x, y, x + w, y + h) for x, y, w, h in (box, tight)]
        if max(abs(a - b) for a, b in zip(*corners, strict=True)) > MARGIN:
            yield Finding('note', 'box is not tight around the mask', f'{box}, mask {tight}')


def _check_folder(dataset: BaseDataset, images: list[dict], report: Report) -> None:
    """Note the images that no annotation file lists."""
    folder = dataset.data_prefix.get('img', '')
    listed = {os.path.normpath(image['file_name']) for image in images}
    suffixes = {os.path.splitext(name)[1] for name in listed}
    for root, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = os.path.join(root, name)
            inside = os.path.relpath(path, folder)
            if inside not in listed and os.path.splitext(name)[1] in suffixes:
                place = relative(path, dataset.data_root)
                report.add('note', 'image that the annotations do not list', place)


def _count(annotations: list[dict], classes: dict[int | str, str], report: Report) -> None:
    """Count objects and images of each class, and note the sizes of boxes."""
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

"""Writing of records: as the configs read them, and as YOLO, Pascal VOC and COCO."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from pycocotools import mask as mask_utils

from ..datasets.check.coco_file import finite, wrong_fields
from ..datasets.check.objects import check_object
from ..fileio import atomic_text
from .geometry import beyond, encode, one_polygon, rectangle, run_lengths
from .maps import BOX, IGNORED
from .source import Object, Record, Skip, Source, stem, suffix


def annotate(source: Source, record: Record, *, masks: bool) -> list[dict]:
    """The COCO annotations of an image with the ``name`` of the class; bad ones are reported."""

    def usable(item: Object) -> dict:
        if masks and item.mask is None:
            raise Skip('object without a mask', item.name)
        annotation, clipped = _annotation(item, record.size)
        if clipped:
            what = 'object crosses the image border: the part inside is used'
            source.report.add('note', what, f'{record.place}, {record.image}: {item.name}')
        return annotation

    return source.each(usable, record.objects, f'{record.place}, {record.image}')


def _annotation(item: Object, size: tuple[int, int]) -> tuple[dict, bool]:
    """The COCO annotation of an object, and whether it was clipped."""
    width, height = size
    box, mask, tight = item.box, item.mask, None
    if isinstance(mask, list):
        mask = [part for part in mask if not isinstance(part, list) or len(part) > 5] or mask
    elif not box and mask is None:
        raise Skip('object without a box or a mask')
    result: dict[str, Any] = {
        **{'name': item.name, 'id': 0, 'image_id': 0, 'category_id': 0, 'area': 1},
        **{'bbox': box or [0, 0, width, height], 'segmentation': mask or []},
        'iscrowd': int(item.crowd),
    }
    if wrong := wrong_fields('annotations', result):
        raise Skip(f'{wrong[0]} is not made of finite numbers', str(result[wrong[0]])[:60])
    for finding in check_object(result, width, height, needs_mask=False, draw=False):
        if finding.severity == 'error':
            raise Skip(finding.what, finding.where)
    clipped = False
    if isinstance(mask, list):
        xs, ys = ([value for part in mask for value in part[axis::2]] for axis in (0, 1))
        tight = rectangle(min(xs), min(ys), max(xs), max(ys))
        if clipped := beyond(tight, size):
            mask, tight = run_lengths(mask_utils.decode(encode(mask, size))), None
    box = box or tight or mask_utils.toBbox(encode(mask, size)).tolist()
    if beyond(box, size):
        x, y, w, h = box
        box = rectangle(max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))
        clipped = True
    if box[2] < 1 or box[3] < 1:
        raise Skip('object of less than a pixel', box)
    area = item.area if finite([item.area]) and not clipped else 0
    if not area or area <= 0:
        area = float(mask_utils.area(encode(mask, size))) if mask else box[2] * box[3]
    if not area:
        raise Skip('mask covers no pixel', box)
    return {**result, 'bbox': box, 'area': area, 'segmentation': mask or []}, clipped


def coco(source: Source, records: Sequence[Record]) -> str:
    """A COCO file."""
    numbers = {name: number for number, name in enumerate(source.classes, 1)}
    images: list[dict] = []
    annotations: list[dict] = []
    for number, record in enumerate(records, 1):
        width, height = record.size
        entry = {'id': number, 'file_name': record.name, 'width': width, 'height': height}
        images.append(entry)
        for own in record.annotations:
            ids = {'id': len(annotations) + 1, 'image_id': number}
            entry = {**own, **ids, 'category_id': numbers[own['name']]}
            annotations.append({key: value for key, value in entry.items() if key != 'name'})
    categories = [{'id': number, 'name': name} for name, number in numbers.items()]
    content = {'images': images, 'categories': categories, 'annotations': annotations}
    return json.dumps(content) + '\n'


def paint(record: Record, classes: Sequence[str]) -> np.ndarray:
    """A label map of objects with masks: small ones over large ones, crowds ignored."""
    labels = np.full(record.size[::-1], classes.index('background'), np.uint8)
    for own in sorted(record.annotations, key=lambda own: -own['area']):
        mask = mask_utils.decode(encode(own['segmentation'], record.size)) > 0
        labels[mask] = IGNORED if own['iscrowd'] else classes.index(own['name'])
    return labels


def place(image: Path, target: Path, copy: bool) -> None:
    """Put an image to a place as a link, or as a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        with suppress(OSError):  # Windows allows links to some people only
            return target.symlink_to(os.path.abspath(image))
    shutil.copyfile(image, target)


# Other tools' formats. Each function writes one split, and returns the folder for its images.


def to_coco(source: Source, folder: Path, split: str, records: Sequence[Record]) -> str:
    atomic_text(folder / 'annotations' / f'instances_{split}.json', coco(source, records))
    return split


def to_yolo(source: Source, folder: Path, split: str, records: Sequence[Record]) -> str:
    for record in records:
        text = ''
        for own in record.annotations:
            if own['iscrowd']:
                source.report.add('warning', 'crowd: YOLO has none', record.image)
                continue
            x, y, w, h = own['bbox']
            values = [x + w / 2, y + h / 2, w, h]
            if own['segmentation']:
                values = one_polygon(own['segmentation'], record.size)
            shares = (value / record.size[i % 2] for i, value in enumerate(values))
            inside = (repr(min(max(share, 0.0), 1.0)) for share in shares)
            text += f'{source.classes.index(own["name"])} {" ".join(inside)}\n'
        atomic_text(folder / 'labels' / split / f'{stem(record.name)}.txt', text)
    folders = {own.name: f'images/{own.name}' for own in (folder / 'labels').iterdir()}
    settings = {**folders, 'names': dict(enumerate(source.classes))}
    # JSON is YAML too.
    atomic_text(folder / 'data.yaml', json.dumps(settings, ensure_ascii=False) + '\n')
    return f'images/{split}'


def to_voc(source: Source, folder: Path, split: str, records: Sequence[Record]) -> str:
    for record in records:
        keys, size = ('width', 'height', 'depth'), (*record.size, 3)
        text = f'<annotation>\n<filename>{escape(record.name)}</filename>\n'
        text += f'<size>{_elements(keys, size)}</size>\n'
        for own in record.annotations:
            x, y, w, h = own['bbox']
            kind = _elements(('name', 'difficult'), (escape(own['name']), own['iscrowd']))
            box = _elements(BOX, (x, y, x + w, y + h))
            text += f'<object>{kind}<bndbox>{box}</bndbox></object>\n'
        path = folder / 'Annotations' / f'{stem(record.name)}.xml'
        atomic_text(path, f'{text}</annotation>\n')
    names = ''.join(f'{stem(record.name)}\n' for record in records)
    atomic_text(folder / 'ImageSets' / 'Main' / f'{split}.txt', names)
    return 'JPEGImages'


def _elements(keys: Sequence[str], values: Sequence[Any]) -> str:
    return ''.join(f'<{key}>{own}</{key}>' for key, own in zip(keys, values, strict=True))


WRITERS = {'yolo': to_yolo, 'voc': to_voc, 'coco': to_coco}


def unique_names(records: Sequence[Record]) -> None:
    """Name images for one folder: by their last part, else by all, else with a number."""
    taken: set[str] = set()
    for record in records:
        whole = record.name.replace('/', '__')
        numbered = (f'{stem(whole)}_{number}{suffix(whole)}' for number in count(2))
        names = chain([record.name.rpartition('/')[2], whole], numbered)
        record.name = next(name for name in names if stem(name).casefold() not in taken)
        taken.add(stem(record.name).casefold())

"""Writing of records: as the configs read them, and as YOLO, Pascal VOC and COCO."""

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from ..datasets.check.coco_file import is_number, wrong_fields
from ..datasets.check.objects import check_object
from ..fileio import atomic_text, atomic_write
from .geometry import beyond, encode, extent, one_polygon, run_lengths
from .maps import IGNORED
from .source import Object, Record, Skip, Source, stem, suffix


@dataclass
class Sample:
    """An image that is used.

    Attributes:
        record: Its labels as they were read.
        name: Its path below the folder of images.
        size: Width and height in pixels.
        annotations: COCO's annotations, with the ``name`` of the class.
        present: The class of each object, or all classes of the image.
    """

    record: Record
    name: str
    size: tuple[int, int]
    annotations: list[dict]
    present: list[str]


def annotate(source: Source, record: Record, size: tuple[int, int], *, masks: bool) -> list[dict]:
    """The COCO annotations of an image with the ``name`` of the class; bad ones are reported."""

    def usable(item: Object) -> dict:
        if masks and item.mask is None:
            raise Skip('object without a mask', item.name)
        annotation = _annotation(item, size)
        if annotation.pop('clipped'):
            what = 'object crosses the image border: the part inside is used'
            source.report.add('note', what, f'{record.place}, {record.image}: {item.name}')
        return annotation

    return source.each(usable, record.objects, f'{record.place}, {record.image}')


def _annotation(item: Object, size: tuple[int, int]) -> dict:
    width, height = size
    box, mask = item.box and list(item.box), item.mask
    if isinstance(mask, list):
        mask = [part for part in mask if not isinstance(part, list) or len(part) > 5] or mask
    elif not box and mask is None:
        raise Skip('object without a box or a mask')
    result: dict[str, Any] = {
        'name': item.name,
        'id': 0,
        'image_id': 0,
        'category_id': 0,
        'bbox': box or [0, 0, width, height],
        'area': 1,
        'iscrowd': int(item.crowd),
        'segmentation': mask or [],
    }
    if wrong := wrong_fields('annotations', result):
        raise Skip(f'{wrong[0]} is not made of finite numbers', str(result[wrong[0]])[:60])
    for finding in check_object(result, width, height, needs_mask=False, draw=False):
        if finding.severity == 'error':
            raise Skip(finding.what, finding.where)
    own = extent(mask) if isinstance(mask, list) else None
    clipped = own is not None and beyond(own, size)
    if clipped:
        mask = result['segmentation'] = run_lengths(mask_utils.decode(encode(mask, size)))
        own = None
    box = box or own or mask_utils.toBbox(encode(mask, size)).tolist()
    if beyond(box, size):
        x, y, w, h = box
        left, top = max(x, 0), max(y, 0)
        box, clipped = [left, top, min(x + w, width) - left, min(y + h, height) - top], True
    if box[2] < 1 or box[3] < 1:
        raise Skip('object of less than a pixel', box)
    area = item.area if is_number(item.area) and not clipped else 0
    if not area or area <= 0:
        area = float(mask_utils.area(encode(mask, size))) if mask else box[2] * box[3]
    if not area:
        raise Skip('mask covers no pixel', box)
    return {**result, 'bbox': box, 'area': area, 'clipped': clipped}


def coco(samples: Sequence[Sample], classes: Sequence[str]) -> str:
    """A COCO file."""
    numbers = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict] = []
    annotations: list[dict] = []
    for number, sample in enumerate(samples, 1):
        width, height = sample.size
        entry = {'id': number, 'file_name': sample.name, 'width': width, 'height': height}
        images.append(entry)
        for own in sample.annotations:
            category = numbers[own['name']]
            known = {'id': len(annotations) + 1, 'image_id': number, 'category_id': category}
            annotations.append({**own, **known})
            del annotations[-1]['name']
    categories = [{'id': number, 'name': name} for name, number in numbers.items()]
    content = {'images': images, 'categories': categories, 'annotations': annotations}
    return json.dumps(content) + '\n'


def paint(annotations: Sequence[dict], size: tuple[int, int], classes: Sequence[str]) -> np.ndarray:
    """A label map of objects with masks: small ones over large ones, crowds ignored."""
    labels = np.full((size[1], size[0]), classes.index('background'), np.uint8)
    for own in sorted(annotations, key=lambda own: -own['area']):
        if own['segmentation']:
            mask = mask_utils.decode(encode(own['segmentation'], size)) > 0
            labels[mask] = IGNORED if own['iscrowd'] else classes.index(own['name'])
    return labels


def save_map(path: Path, labels: np.ndarray) -> None:
    """Write a label map as PNG."""
    content = io.BytesIO()
    Image.fromarray(labels).save(content, 'PNG')
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, durable=False) as file:
        file.write(content.getvalue())


def place(source: Source, image: str, target: Path, copy: bool) -> None:
    """Put an image to a place as a link, or as a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            target.symlink_to(os.path.abspath(source.root / image))
            return
        except OSError:  # Windows allows links to some people only
            pass
    shutil.copyfile(source.root / image, target)


# Other tools' formats. Each function writes one split; ``files`` are the names of its images.


def to_coco(
    source: Source, folder: Path, split: str, samples: Sequence[Sample], classes: Sequence[str]
) -> str:
    atomic_text(folder / 'annotations' / f'instances_{split}.json', coco(samples, classes))
    return split


def to_yolo(
    source: Source, folder: Path, split: str, samples: Sequence[Sample], classes: Sequence[str]
) -> str:
    for sample in samples:
        lines = []
        width, height = sample.size
        for own in sample.annotations:
            if own['iscrowd']:
                source.report.add('warning', 'crowd: YOLO has none', sample.record.image)
                continue
            x, y, w, h = own['bbox']
            values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            if own['segmentation']:
                flat = one_polygon(own['segmentation'], sample.size)
                values = [value / (height if i % 2 else width) for i, value in enumerate(flat)]
            clipped = (min(max(value, 0.0), 1.0) for value in values)
            lines.append(' '.join([str(classes.index(own['name'])), *map(repr, clipped)]))
        text = ''.join(f'{line}\n' for line in lines)
        atomic_text(folder / 'labels' / split / f'{stem(sample.name)}.txt', text)
    names = {'names': dict(enumerate(classes))}
    folders = {
        name: f'images/{name}'
        for name in ('train', 'val', 'test')
        if (folder / 'labels' / name).is_dir()
    }
    # JSON is YAML too.
    atomic_text(folder / 'data.yaml', json.dumps({**folders, **names}, ensure_ascii=False) + '\n')
    return f'images/{split}'


def to_voc(
    source: Source, folder: Path, split: str, samples: Sequence[Sample], classes: Sequence[str]
) -> str:
    for sample in samples:
        root = ElementTree.Element('annotation')
        add: Callable[..., Any] = ElementTree.SubElement
        add(root, 'filename').text = sample.name
        size = add(root, 'size')
        for key, value in zip(('width', 'height', 'depth'), (*sample.size, 3), strict=True):
            add(size, key).text = str(value)
        for own in sample.annotations:
            node = add(root, 'object')
            add(node, 'name').text = own['name']
            add(node, 'difficult').text = str(own['iscrowd'])
            box = add(node, 'bndbox')
            x, y, w, h = own['bbox']
            for key, value in zip(
                ('xmin', 'ymin', 'xmax', 'ymax'), (x, y, x + w, y + h), strict=True
            ):
                add(box, key).text = repr(value)
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding='unicode') + '\n'
        atomic_text(folder / 'Annotations' / f'{stem(sample.name)}.xml', text)
    names = ''.join(f'{stem(sample.name)}\n' for sample in samples)
    atomic_text(folder / 'ImageSets' / 'Main' / f'{split}.txt', names)
    return 'JPEGImages'


WRITERS = {'yolo': to_yolo, 'voc': to_voc, 'coco': to_coco}
"""Formats to write; a writer returns the folder for the images of the split."""


def unique_names(samples: Sequence[Sample]) -> None:
    """Name images for one folder: by their last part if no other stem is equal, else by all."""
    stems: dict[str, int] = {}
    for sample in samples:
        key = stem(sample.name).casefold()
        stems[key] = stems.get(key, 0) + 1
    taken: set[str] = set()
    for sample in samples:
        name = sample.name.rpartition('/')[2]
        if stems[stem(sample.name).casefold()] > 1:
            name = sample.name.replace('/', '__')
        base, number = stem(name), 2
        while stem(name).casefold() in taken:
            name, number = f'{base}_{number}{suffix(sample.name)}', number + 1
        taken.add(stem(name).casefold())
        sample.name = name

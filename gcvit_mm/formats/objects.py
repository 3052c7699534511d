"""Readers of labelled objects: COCO, YOLO, Pascal VOC, CVAT, LabelMe, VIA, Supervisely.

A format is two functions: one names its label files in a source, one yields their records.
"""

import base64
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from pycocotools import mask as mask_utils

from ..datasets.check.coco_file import FLAG
from ..errors import UserError
from .geometry import ellipse, placed, png, polygon, rectangle, run_lengths
from .source import SPLITS, Object, Record, Skip, Source, split_of, stem

LONGEST = 10**8
"""Bytes that a compressed mask may have: a few kilobytes could be terabytes otherwise."""
CLASS_KEYS = ('class', 'label', 'name', 'type', 'category')
"""What people call the attribute that holds the class, in VIA."""


# COCO.


def find_coco(source: Source) -> list[str]:
    """COCO files have lists of images, categories and annotations."""
    return json_files(source, lambda content: is_coco(content) and not is_panoptic(content))


def is_coco(content: dict) -> bool:
    lists = (content.get(key) for key in ('images', 'categories', 'annotations'))
    return all(isinstance(item, list) for item in lists)


def is_panoptic(content: dict) -> bool:
    return is_coco(content) and 'segments_info' in str(content['annotations'][:1])


def read_coco(source: Source, files: Sequence[str]) -> Iterator[Record]:
    for file in files:
        content = source.parse(file)
        by_image = defaultdict(list)
        for annotation in content['annotations']:
            if isinstance(annotation, dict):
                by_image[str(annotation.get('image_id'))].append(annotation)
        pairs = source.each(lambda c: (c['id'], str(c['name'])), content['categories'], file)
        names = dict(pairs)
        # Roboflow's first category is the project, the parent of all others.
        used = {a.get('category_id') for entries in by_image.values() for a in entries}
        parents = {c.get('supercategory') for c in content['categories'] if c['id'] in used}
        for number, name in names.items():
            if name not in source.classes and (number in used or parents != {name}):
                source.classes.append(name)
        for image in content['images']:
            with source.entry(f'{file}, image {image.get("id")}'):
                path = source.image(image['file_name'], file)
                told = (int(image.get('width') or 0), int(image.get('height') or 0))
                place = f'{file}, image {image["id"]} ({image["file_name"]})'
                annotations = by_image.pop(str(image['id']), [])
                read = partial(_coco_object, names)
                objects = source.each(read, annotations, place)
                yield Record(path, file, split_of(file), objects, told=told)
        known = {str(image.get('id')) for image in content['images']}
        for number, entries in by_image.items():
            if number not in known:
                what = 'annotation of an image that is not listed'
                source.report.add('warning', what, f'{file}: image_id {number}, {len(entries)}')


def _coco_object(names: dict, entry: dict) -> Object:
    if entry['category_id'] not in names:
        raise Skip('category is not listed', entry['category_id'])
    crowd = entry.get('iscrowd')
    if not FLAG.fits(crowd) or not FLAG.fits(entry.get('ignore')):
        raise Skip('iscrowd or ignore is not 0 or 1', repr(crowd))
    mask = entry.get('segmentation')
    mask = None if mask in (None, [], [[]], {}) else mask
    crowd = bool(crowd or entry.get('ignore'))
    return Object(names[entry['category_id']], entry.get('bbox'), mask, crowd, entry.get('area'))


def json_files(source: Source, fits: Callable[[Any], bool]) -> list[str]:
    contents = [(path, source.parse(path)) for path in source.find('.json')]
    return [path for path, content in contents if isinstance(content, dict) and fits(content)]


# YOLO.


def find_yolo(source: Source) -> list[str]:
    """YOLO's text files are named like images; their lines are a class and four or more numbers."""
    files = [
        path
        for path in source.find('.txt')
        if source.named(stem(path)) and stem(path).lower() not in SPLITS
    ]
    first = [lines[0].split() for path in files[:50] if (lines := source.lines(path))]
    numbers = [line for line in first if len(line) > 4 and line[0].isdecimal()]
    return files if 2 * len(numbers) > len(first) or (yolo_settings(source) and not first) else []


def yolo_settings(source: Source) -> dict:
    """The content of data.yaml, under whatever name."""
    for path in source.find('.yaml', '.yml'):
        content = source.parse(path)
        if isinstance(content, dict) and isinstance(content.get('names'), list | dict):
            return content
    return {}


def read_yolo(source: Source, files: Sequence[str]) -> Iterator[Record]:
    settings = yolo_settings(source)
    names = settings.get('names') or source.names
    if isinstance(names, dict):
        with source.entry('names of data.yaml'):
            names = {int(number): name for number, name in names.items()}
        names = [names.get(number, f'class_{number}') for number in range(max(names) + 1)]
    source.classes += map(str, names)
    for key in SPLITS:
        folders = settings.get(key) or []
        for folder in [folders] if isinstance(folders, str) else folders:
            inside = str(folder).replace('\\', '/').split('/')
            inside = [part for part in inside if part not in ('.', '..', '')]
            # Roboflow writes ../train/images for train/images, others the place on their disk.
            for start in range(len(inside)):
                prefix = '/'.join(inside[start:]) + '/'
                held = [image for image in source.images.values() if image.startswith(prefix)]
                source.listed.update(dict.fromkeys(held, SPLITS[key]))
                if held or split_of(f'{inside[start]}/'):
                    break
    labelled: set[str] = set()
    for file in files:
        with source.entry(file):
            image = source.image(stem(file), file)
            labelled.add(image)
            size = source.size(image)
            read = partial(_yolo_object, source, size, 'kpt_shape' in settings)
            yield Record(image, file, '', source.each(read, source.lines(file), file))
    folders = {image.rpartition('/')[0] for image in labelled}
    for image in source.images.values():
        if image not in labelled and image.rpartition('/')[0] in folders:
            source.report.add('note', 'image without a label file: taken as background', image)
            yield Record(image, image)


def _yolo_object(source: Source, size: tuple[int, int], keypoints: bool, line: str) -> Object:
    first, *rest = line.split()
    values = [float(value) for value in rest]
    if len(values) < 4 or (len(values) % 2 and not keypoints):
        raise Skip('line is not a class, and a box or a polygon', f'{1 + len(values)} numbers')
    shares = values[:4] if keypoints else values
    if not all(-0.01 <= value <= 1.01 for value in shares):
        raise Skip('coordinates are not shares of the image, from 0 to 1', line[:60])
    name = source.name_of(int(first))
    width, height = size
    if len(values) > 4 and not keypoints:
        return Object(name, mask=[polygon((x * width, y * height) for x, y in _pairs(values))])
    x, y, w, h = values[:4]
    return Object(name, [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height])


def _pairs(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


# XML: Pascal VOC and CVAT.


def _xml_files(source: Source, fits: Callable[[Element], bool]) -> list[str]:
    contents = [(path, source.parse(path)) for path in source.find('.xml')]
    return [path for path, content in contents if content is not None and fits(content)]


def find_voc(source: Source) -> list[str]:
    """Pascal VOC's XML files have the root ``annotation``."""
    return _xml_files(source, lambda root: root.tag == 'annotation')


def read_voc(source: Source, files: Sequence[str]) -> Iterator[Record]:
    for file in files:
        root = source.parse(file)
        with source.entry(file):
            try:  # many tools leave an old name inside
                image = source.image(stem(file), file)
            except Skip:
                image = source.image(root.findtext('filename'), file)
            size = [int(float(root.findtext(f'size/{key}') or 0)) for key in ('width', 'height')]
            objects = source.each(_voc_object, root.iter('object'), file)
            yield Record(image, file, '', objects, told=(size[0], size[1]))


def _voc_object(node: Element) -> Object:
    corners = [node.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
    difficult = (node.findtext('difficult') or '0').strip() not in ('0', '')
    points = [float(point.text or '') for point in node.findall('polygon/*')]
    mask = [polygon(_pairs(points))] if len(points) > 5 else None
    return Object(_text(node.findtext('name')), rectangle(*corners), mask, difficult)


def _text(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise Skip('object without a class', name)
    return name.strip()


def find_cvat(source: Source) -> list[str]:
    """CVAT's XML files have the root ``annotations``."""
    return _xml_files(source, lambda root: root.tag == 'annotations')


def read_cvat(source: Source, files: Sequence[str]) -> Iterator[Record]:
    for file in files:
        root = source.parse(file)
        if root.find('track') is not None:
            raise UserError(f'{file} has tracks of a video: export it as "CVAT for images 1.1"')
        for label in root.iter('label'):
            name = label.findtext('name')
            if name and name not in source.classes:
                source.classes.append(name)
                code = (label.findtext('color') or '').lstrip('#')
                if len(code) == 6:
                    source.palette[name] = tuple(bytes.fromhex(code))  # type: ignore[assignment]
        for node in root.iter('image'):
            with source.entry(f'{file}, image {node.get("name")}'):
                image = source.image(node.attrib['name'], file)
                size = int(node.get('width', 0)), int(node.get('height', 0))
                shapes = [shape for shape in node if shape.tag != 'tag']
                tags = [tag.get('label', '') for tag in node.findall('tag')]
                split = split_of(node.get('subset', '')) or split_of(file)
                place = f'{file}, image {node.get("name")}'
                objects = _joined(source.each(partial(_cvat_object, size), shapes, place))
                label = tags[0] if len(tags) == 1 else ''
                yield Record(image, file, split, objects, label, told=size)


def _cvat_object(size: tuple[int, int], node: Element) -> tuple[Object, Any]:
    kind, get = node.tag, node.attrib
    name, group = _text(get['label']), get.get('group_id')
    turn = math.radians(float(get.get('rotation', 0)))
    if kind == 'box':
        x, y, w, h = rectangle(*(get[key] for key in ('xtl', 'ytl', 'xbr', 'ybr')))
        if not turn:
            return Object(name, [x, y, w, h]), None
        cos, sin = math.cos(turn) / 2, math.sin(turn) / 2
        middle = x + w / 2, y + h / 2
        corners = [(w, h), (-w, h), (-w, -h), (w, -h)]
        turned = [
            (middle[0] + cos * a - sin * b, middle[1] + sin * a + cos * b) for a, b in corners
        ]
        return Object(name, mask=[polygon(turned)]), group
    if kind == 'polygon':
        points = [point.split(',') for point in get['points'].split(';')]
        return Object(name, mask=[polygon(points)]), group
    if kind == 'ellipse':
        return Object(name, mask=[ellipse(get['cx'], get['cy'], get['rx'], get['ry'], turn)]), None
    if kind == 'mask':
        runs = [int(run) for run in get['rle'].split(',')]
        shape = int(get['height']), int(get['width'])
        pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(shape)
        return Object(name, mask=placed(pixels, (get['left'], get['top']), size)), None
    raise Skip('shape without an area', kind)


def _joined(shapes: list[tuple[Object, Any]]) -> list[Object]:
    """Objects from shapes, those of one group and class as one."""
    objects: list[Object] = []
    groups: dict[Any, Object] = {}
    for shape, group in shapes:
        first = groups.setdefault((group, shape.name), shape) if group else shape
        if first is shape:
            objects.append(shape)
        elif isinstance(first.mask, list) and isinstance(shape.mask, list):
            first.mask += shape.mask
    return objects


# JSON of one image or project: LabelMe, VIA, Supervisely.


def find_labelme(source: Source) -> list[str]:
    """LabelMe's JSON files have ``shapes`` and an ``imagePath``."""
    return json_files(source, lambda c: isinstance(c.get('shapes'), list) and 'imagePath' in c)


def read_labelme(source: Source, files: Sequence[str]) -> Iterator[Record]:
    for file in files:
        content = source.parse(file)
        with source.entry(file):
            try:
                image = source.image(content['imagePath'], file)
            except Skip:
                image = source.image(stem(file), file)
            told = (int(content.get('imageWidth') or 0), int(content.get('imageHeight') or 0))
            size = told if all(told) else source.size(image)
            objects = _joined(source.each(partial(_labelme_object, size), content['shapes'], file))
            yield Record(image, file, '', objects, told=told)


def _labelme_object(size: tuple[int, int], shape: dict) -> tuple[Object, Any]:
    name, points = _text(shape['label']), shape['points']
    kind, group = shape.get('shape_type') or 'polygon', shape.get('group_id')
    group = None if group is None else str(group)
    if kind == 'rectangle':
        return Object(name, rectangle(*map(min, *points), *map(max, *points))), None
    if kind == 'circle':
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return Object(name, mask=[ellipse(x, y, radius, radius)]), None
    if kind == 'mask':
        return Object(name, mask=placed(png(shape['mask']), points[0], size)), None
    if kind == 'polygon':
        return Object(name, mask=[polygon(points)]), group
    raise Skip('shape without an area', kind)


def find_via(source: Source) -> list[str]:
    """VIA's JSON files have entries with ``filename`` and ``regions``."""

    def is_via(content: dict) -> bool:
        entries = content.get('_via_img_metadata', content)
        first = next(iter(entries.values()), None) if isinstance(entries, dict) else None
        return isinstance(first, dict) and {'filename', 'regions'} <= first.keys()

    return json_files(source, is_via)


def read_via(source: Source, files: Sequence[str]) -> Iterator[Record]:
    for file in files:
        content = source.parse(file)
        entries = content.get('_via_img_metadata', content)
        for number, entry in entries.items():
            with source.entry(f'{file}, {number}'):
                image, regions = source.image(entry['filename'], file), entry['regions']
                regions = list(regions.values()) if isinstance(regions, dict) else regions
                objects = source.each(_via_object, regions, f'{file}, {entry["filename"]}')
                yield Record(image, file, split_of(file), objects)


def _via_object(region: dict) -> Object:
    shape, attributes = region['shape_attributes'], region.get('region_attributes') or {}
    keys = [key for key in CLASS_KEYS if key in attributes] or list(attributes)
    value = attributes[keys[0]] if keys else 'object'
    if isinstance(value, dict):  # of a check box
        value = next((name for name, chosen in value.items() if chosen), '')
    name, kind = _text(value), shape['name']
    if kind == 'rect':
        x, y, w, h = (float(shape[key]) for key in ('x', 'y', 'width', 'height'))
        return Object(name, [x, y, w, h])
    if kind == 'polygon':
        points = zip(shape['all_points_x'], shape['all_points_y'], strict=True)
        return Object(name, mask=[polygon(points)])
    if kind in ('circle', 'ellipse'):
        radii = (shape['r'],) * 2 if kind == 'circle' else (shape['rx'], shape['ry'])
        angle = shape.get('theta', 0)
        return Object(name, mask=[ellipse(shape['cx'], shape['cy'], *radii, angle)])
    raise Skip('shape without an area', kind)


def find_supervisely(source: Source) -> list[str]:
    """Supervisely's JSON files have ``objects`` with ``classTitle``, and a ``size``."""
    return json_files(source, lambda c: isinstance(c.get('objects'), list) and 'size' in c)


def read_supervisely(source: Source, files: Sequence[str]) -> Iterator[Record]:
    for file in source.find('.json'):
        content = source.parse(file)
        if isinstance(content, dict) and isinstance(content.get('classes'), list):
            for entry in content['classes']:
                source.classes.append(entry['title'])
                code = str(entry.get('color', '')).lstrip('#')
                if len(code) == 6:
                    source.palette[entry['title']] = tuple(bytes.fromhex(code))  # type: ignore
    for file in files:
        content = source.parse(file)
        with source.entry(file):
            try:
                image = source.image(stem(file), file)  # a.jpg.json
            except Skip:
                image = source.image(stem(stem(file)), file)
            size = int(content['size']['width']), int(content['size']['height'])
            read = partial(_supervisely_object, size)
            yield Record(image, file, '', source.each(read, content['objects'], file), told=size)


def _supervisely_object(size: tuple[int, int], entry: dict) -> Object:
    name, kind = _text(entry['classTitle']), entry.get('geometryType')
    if kind == 'bitmap':
        bitmap = entry['bitmap']
        try:
            pixels = png(zlib.decompressobj().decompress(base64.b64decode(bitmap['data']), LONGEST))
        except (zlib.error, OSError) as error:
            raise Skip('bitmap cannot be decoded', error) from error
        return Object(name, mask=placed(pixels, bitmap['origin'], size))
    points = entry['points']['exterior'] if kind in ('rectangle', 'polygon') else []
    if kind == 'rectangle':
        return Object(name, rectangle(*map(min, *points), *map(max, *points)))
    if kind == 'polygon':
        outer = [polygon(points)]
        holes = [polygon(hole) for hole in entry['points'].get('interior') or []]
        if not holes:
            return Object(name, mask=outer)
        whole, inner = (
            mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(p, size[1], size[0])))
            for p in (outer, holes)
        )
        return Object(name, mask=run_lengths(whole & ~inner & 1))
    raise Skip('shape without an area', kind)

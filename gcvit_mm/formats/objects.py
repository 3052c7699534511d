"""Readers of labelled objects: COCO, YOLO, Pascal VOC, CVAT, LabelMe, VIA, Supervisely.

A format is two functions: one names its label files in a source, one yields their records.
"""

import base64
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias
from xml.etree.ElementTree import Element

import numpy as np
from pycocotools import mask as mask_utils

from ..datasets.check.coco_file import FLAG
from ..errors import UserError
from .geometry import decode_png, ellipse, placed, polygon, rectangle, run_lengths
from .source import SPLITS, Object, Record, Skip, Source, split_of, stem

Size: TypeAlias = tuple[int, int]
Find: TypeAlias = Callable[[Source], list[str]]
Read: TypeAlias = Callable[[Source, Sequence[str]], Iterator[Record]]
LONGEST = 10**8
"""Bytes that a compressed mask may have: a few kilobytes could be terabytes otherwise."""
CLASS_KEYS = ('class', 'label', 'name', 'type', 'category')
"""What people call the attribute that holds the class, in VIA."""


def documents(
    kind: str, fits: Callable[[Any], Any], read: Callable[[Source, str, Any], Iterator[Record]]
) -> tuple[Find, Read]:
    """The functions of a format whose JSON objects or XML files are recognised by their content."""

    def find(source: Source) -> list[str]:
        contents = ((path, source.parse(path)) for path in source.find(kind))
        return [p for p, own in contents if isinstance(own, dict | Element) and fits(own)]

    def read_all(source: Source, files: Sequence[str]) -> Iterator[Record]:
        for file in files:
            with source.entry(file):
                yield from read(source, file, source.parse(file))

    return find, read_all


def record(
    source: Source,
    file: str,
    names: Sequence[str | None],
    shapes: Any,
    convert: Callable[[Size, Any], Object],
    told: Sequence[Any] = (0, 0),
    split: str = '',
    label: str = '',
) -> Iterator[Record]:
    """The record of an image, unless it is missing, or what it is called cannot be read.

    The ``names`` of the image are in the order of trust; ``convert`` makes objects of its shapes;
    ``told`` is its width and height, or has a 0 or None if the file does not say them.
    """
    place = f'{file}, image {names[0]}'
    with source.entry(place):
        image = source.image(file, *names)
        width, height = (int(float(length or 0)) for length in told)
        size = (width, height) if width and height else source.size(image)
        groups: dict[Any, Object] = {}
        for number, own in enumerate(source.each(partial(convert, size), shapes, place)):
            key = (own.name, own.group) if own.group else number
            if groups.setdefault(key, own) is not own:
                groups[key].mask += own.mask
        yield Record(image, file, split, [*groups.values()], label, told=(width, height))


def named(name: Any) -> str:
    """The name of a class.

    Raises:
        Skip: There is none.
    """
    if not isinstance(name, str) or not name.strip():
        raise Skip('object without a class', repr(name))
    return name.strip()


def declare(source: Source, name: str, color: str | None) -> None:
    """Add a class, and its colour #RRGGBB."""
    if name not in source.classes:
        source.classes.append(name)
    if color and len(color) == 7:
        red, green, blue = bytes.fromhex(color[1:])
        source.palette[name] = red, green, blue


# COCO.


def is_coco(content: dict) -> bool:
    lists = (content.get(key) for key in ('images', 'categories', 'annotations'))
    return all(isinstance(item, list) for item in lists)


def is_panoptic(content: dict) -> bool:
    return is_coco(content) and 'segments_info' in str(content['annotations'][:1])


def read_coco(source: Source, file: str, content: dict) -> Iterator[Record]:
    by_image = defaultdict(list)
    source.each(lambda own: by_image[own['image_id']].append(own), content['annotations'], file)
    categories = {category['id']: category for category in content['categories']}
    # Roboflow's first category is the project, the parent of all others, and has no objects.
    used = {str(own.get('category_id')) for entries in by_image.values() for own in entries}
    parents = {own.get('supercategory') for i, own in categories.items() if str(i) in used}
    for number, category in categories.items():
        if str(number) in used or parents != {category['name']}:
            declare(source, named(category['name']), None)
    convert = partial(_coco_object, categories)
    for number, image in enumerate(content['images'], 1):
        with source.entry(f'{file}, image {number}'):
            names, own = [image['file_name']], by_image.pop(image['id'], [])
            told = image.get('width'), image.get('height')
            yield from record(source, file, names, own, convert, told, split_of(file))
    for number, own in by_image.items():
        what = 'annotations of an image that is not listed'
        source.report.add('warning', what, f'{file}: {len(own)} of image_id {number}')


def _coco_object(categories: dict, size: Size, entry: dict) -> Object:
    if entry['category_id'] not in categories:
        raise Skip('category is not listed', entry['category_id'])
    crowd, ignored = entry.get('iscrowd'), entry.get('ignore')
    if not FLAG.fits(crowd) or not FLAG.fits(ignored):
        raise Skip('iscrowd or ignore is not 0 or 1', f'{crowd!r}, {ignored!r}')
    name, mask = categories[entry['category_id']]['name'].strip(), entry.get('segmentation')
    mask = None if mask in (None, [], [[]], {}) else mask
    return Object(name, entry.get('bbox'), mask, bool(crowd or ignored), entry.get('area'))


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
        listed = {int(number): name for number, name in names.items() if str(number).isdecimal()}
        names = [
            listed.get(number, f'class_{number}') for number in range(max(listed, default=-1) + 1)
        ]
    source.classes += map(str, names)
    for key in SPLITS:
        given = settings.get(key) or []
        for folder in given if isinstance(given, list) else [given]:
            parts = [p for p in re.split(r'[\\/]', str(folder)) if p not in ('.', '..', '')]
            # Roboflow writes ../train/images for train/images, others the place on their disk.
            for start in range(len(parts)):
                prefix = '/'.join(parts[start:]) + '/'
                held = [image for image in source.images.values() if image.startswith(prefix)]
                source.listed.update(dict.fromkeys(held, SPLITS[key]))
                if held or split_of(f'{parts[start]}/'):
                    break
    convert = partial(_yolo_object, source, 'kpt_shape' in settings)
    folders: set[str] = set()
    labelled: set[str] = set()
    for file in files:
        for own in record(source, file, [stem(file)], source.lines(file), convert):
            labelled.add(own.image)
            folders.add(own.image.rpartition('/')[0])
            yield own
    for image in source.images.values():
        if image not in labelled and image.rpartition('/')[0] in folders:
            source.report.add('note', 'image without a label file: taken as background', image)
            yield Record(image, image)


def _yolo_object(source: Source, keypoints: bool, size: Size, line: str) -> Object:
    first, *rest = line.split()
    values = [float(value) for value in rest]
    if len(values) < 4 or (len(values) % 2 and not keypoints):
        raise Skip('line is not a class, and a box or a polygon', f'{1 + len(values)} numbers')
    values = values[:4] if keypoints else values
    if not all(-0.01 <= value <= 1.01 for value in values):
        raise Skip('coordinates are not shares of the image, from 0 to 1', line[:60])
    name = source.name_of(int(first))
    values = [value * size[axis % 2] for axis, value in enumerate(values)]
    if len(values) > 4:
        return Object(name, mask=[values])
    x, y, w, h = values
    return Object(name, [x - w / 2, y - h / 2, w, h])


# XML: Pascal VOC and CVAT.


def read_voc(source: Source, file: str, root: Element) -> Iterator[Record]:
    told = root.findtext('size/width'), root.findtext('size/height')
    # Many tools leave an old name inside, so that of the label file comes first.
    names = [stem(file), root.findtext('filename')]
    yield from record(source, file, names, root.iter('object'), _voc_object, told)


def _voc_object(size: Size, node: Element) -> Object:
    corners = [node.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
    difficult = (node.findtext('difficult') or '0').strip() != '0'
    points = [float(point.text or '') for point in node.findall('polygon/*')]
    mask = [points] if len(points) > 5 else None
    return Object(named(node.findtext('name')), rectangle(*corners), mask, difficult)


def read_cvat(source: Source, file: str, root: Element) -> Iterator[Record]:
    if root.find('track') is not None:
        raise UserError(f'{file} has tracks of a video: export it as "CVAT for images 1.1"')
    for entry in root.findall('.//label[name]'):
        declare(source, named(entry.findtext('name')), entry.findtext('color'))
    for node in root.iter('image'):
        tags = [tag.get('label', '') for tag in node.findall('tag')]
        shapes = [shape for shape in node if shape.tag != 'tag']
        split = split_of(node.get('subset', '')) or split_of(file)
        told, label = (node.get('width'), node.get('height')), tags[0] if len(tags) == 1 else ''
        names = [node.get('name')]
        yield from record(source, file, names, shapes, _cvat_object, told, split, label)


def _cvat_object(size: Size, node: Element) -> Object:
    kind, get = node.tag, node.attrib
    name, group, turn = named(get['label']), get.get('group_id'), float(get.get('rotation', 0))
    if kind == 'box':
        x, y, w, h = rectangle(*(get[key] for key in ('xtl', 'ytl', 'xbr', 'ybr')))
        if not turn:
            return Object(name, [x, y, w, h])
        middle = x + w / 2, y + h / 2
        reach, start = math.hypot(w, h) / 2, math.atan2(h, w)
        turned = (math.radians(turn) + a for a in (start, math.pi - start, math.pi + start, -start))
        offsets = [(reach * math.cos(a), reach * math.sin(a)) for a in turned]
        return Object(name, mask=[polygon((middle[0] + a, middle[1] + b) for a, b in offsets)])
    if kind == 'polygon':
        points = (point.split(',') for point in get['points'].split(';'))
        return Object(name, mask=[polygon(points)], group=group)
    if kind == 'ellipse':
        sizes = [get[key] for key in ('cx', 'cy', 'rx', 'ry')]
        return Object(name, mask=[ellipse(*sizes, angle=math.radians(turn))])
    if kind == 'mask':
        runs = [int(run) for run in get['rle'].split(',')]
        pixels = np.repeat(np.arange(len(runs)) % 2, runs)
        shape = int(get['height']), int(get['width'])
        return Object(name, mask=placed(pixels.reshape(shape), (get['left'], get['top']), size))
    raise Skip('shape without an area', kind)


# JSON of an image or a project: LabelMe, VIA, Supervisely.


def read_labelme(source: Source, file: str, content: dict) -> Iterator[Record]:
    told = content.get('imageWidth'), content.get('imageHeight')
    names = [content['imagePath'], stem(file)]
    yield from record(source, file, names, content['shapes'], _labelme_object, told)


def _labelme_object(size: Size, shape: dict) -> Object:
    name, points = named(shape['label']), shape['points']
    kind, group = shape.get('shape_type') or 'polygon', shape.get('group_id')
    if kind == 'rectangle':
        return Object(name, rectangle(*map(min, *points), *map(max, *points)))
    if kind == 'circle':
        radius = math.dist(*points)
        return Object(name, mask=[ellipse(points[0][0], points[0][1], radius, radius)])
    if kind == 'mask':
        return Object(name, mask=placed(decode_png(shape['mask']), points[0], size))
    if kind == 'polygon':
        return Object(name, mask=[polygon(points)], group=None if group is None else str(group))
    raise Skip('shape without an area', kind)


def is_via(content: dict) -> bool:
    entries = content.get('_via_img_metadata', content)
    first = next(iter(entries.values()), None) if isinstance(entries, dict) else None
    return isinstance(first, dict) and {'filename', 'regions'} <= first.keys()


def read_via(source: Source, file: str, content: dict) -> Iterator[Record]:
    for entry in content.get('_via_img_metadata', content).values():
        regions, split = entry['regions'], split_of(file)
        regions = regions.values() if isinstance(regions, dict) else regions
        yield from record(source, file, [entry['filename']], regions, _via_object, split=split)


def _via_object(size: Size, region: dict) -> Object:
    shape, attributes = region['shape_attributes'], region.get('region_attributes') or {}
    keys = [key for key in CLASS_KEYS if key in attributes] or list(attributes)
    value = attributes[keys[0]] if keys else 'object'
    if isinstance(value, dict):  # of a check box
        value = next((name for name, chosen in value.items() if chosen), '')
    name, kind = named(value), shape['name']
    if kind == 'rect':
        return Object(name, [float(shape[key]) for key in ('x', 'y', 'width', 'height')])
    if kind == 'polygon':
        points = zip(shape['all_points_x'], shape['all_points_y'], strict=True)
        return Object(name, mask=[polygon(points)])
    if kind in ('circle', 'ellipse'):
        rx, ry = shape.get('rx', shape.get('r')), shape.get('ry', shape.get('r'))
        angle = float(shape.get('theta', 0))
        return Object(name, mask=[ellipse(shape['cx'], shape['cy'], rx, ry, angle=angle)])
    raise Skip('shape without an area', kind)


def read_supervisely(source: Source, file: str, content: dict) -> Iterator[Record]:
    if not source.classes:
        projects = [source.parse(path) for path in source.find('.json') if stem(path) == 'meta']
        for entry in [entry for project in projects for entry in project['classes']]:
            declare(source, named(entry['title']), entry.get('color'))
    told = content['size'].get('width'), content['size'].get('height')
    names = [stem(file), stem(stem(file))]  # the label file of a.jpg is a.jpg.json, or a.json
    yield from record(source, file, names, content['objects'], _supervisely_object, told)


def _supervisely_object(size: Size, entry: dict) -> Object:
    name, kind = named(entry['classTitle']), entry.get('geometryType')
    if kind == 'bitmap':
        data = base64.b64decode(entry['bitmap']['data'])
        try:
            pixels = decode_png(zlib.decompressobj().decompress(data, LONGEST))
        except (zlib.error, OSError) as error:
            raise Skip('bitmap cannot be decoded', error) from error
        return Object(name, mask=placed(pixels, entry['bitmap']['origin'], size))
    if kind == 'rectangle':
        corners = entry['points']['exterior']
        return Object(name, rectangle(*map(min, *corners), *map(max, *corners)))
    if kind == 'polygon':
        outer = [polygon(entry['points']['exterior'])]
        holes = [polygon(hole) for hole in entry['points'].get('interior') or []]
        if not holes:
            return Object(name, mask=outer)
        whole, inner = (
            mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(p, size[1], size[0])))
            for p in (outer, holes)
        )
        return Object(name, mask=run_lengths(whole & ~inner & 1))
    raise Skip('shape without an area', kind)


COCO = documents('.json', lambda c: is_coco(c) and not is_panoptic(c), read_coco)
CVAT = documents('.xml', lambda root: root.tag == 'annotations', read_cvat)
LABELME = documents('.json', lambda c: c.keys() >= {'shapes', 'imagePath'}, read_labelme)
VIA = documents('.json', is_via, read_via)
SUPERVISELY = documents('.json', lambda c: c.keys() >= {'objects', 'size'}, read_supervisely)
VOC = documents('.xml', lambda root: root.tag == 'annotation', read_voc)

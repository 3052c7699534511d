"""Readers of labelled objects: COCO, YOLO, Pascal VOC, CVAT, LabelMe, VIA, Supervisely.

A reader yields the records of a label file, by a function that makes an object of an entry.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from xml.etree.ElementTree import Element

import numpy as np

from ..datasets.check.coco_file import FLAG
from ..datasets.check.images import upright_size
from ..errors import UserError
from .geometry import decode_png, rectangle, shape
from .source import SPLITS, Object, Record, Skip, Source, named, split_of, stem

Size: TypeAlias = tuple[int, int]
CLASS_KEYS = ('class', 'label', 'name', 'type', 'category')
"""What people call the attribute that holds the class, in VIA."""


class Format(NamedTuple):
    """A format of labels, which a source has if there are label files of it."""

    title: str
    find: Callable[[Source], list[str]]
    read: Callable[[Source, Sequence[str]], Iterable[Record]]


def documents(
    title: str, fits: str | Callable[[dict], Any], read: Callable[[Source, str, Any], Iterator]
) -> Format:
    """A format of JSON objects that fit, or of XML files with a tag as their root."""
    kind = '.xml' if isinstance(fits, str) else '.json'

    def known(content: Any) -> bool:
        if isinstance(fits, str):
            return content is not None and content.tag == fits
        return isinstance(content, dict) and bool(fits(content))

    def find(source: Source) -> list[str]:
        return [path for path in source.find(kind) if known(source.parse(path))]

    def read_all(source: Source, files: Sequence[str]) -> Iterator[Record]:
        for file in files:
            with source.entry(file):
                yield from read(source, file, source.parse(file))

    return Format(title, find, read_all)


def record(
    source: Source,
    file: str,
    names: Sequence[str | None],
    entries: Iterable[Any],
    convert: Callable[[Size, Any], Object],
    told: Sequence[Any] = (0, 0),
    split: str = '',
    label: str = '',
) -> Iterator[Record]:
    """The record of an image, unless it is missing, or what it is called cannot be read.

    The ``names`` of the image are in the order of trust; ``convert`` makes objects of entries;
    ``told`` is its width and height, or has a 0 or None if the file does not say them.
    """
    place = f'{file}, image {names[0]}'
    with source.entry(place):
        image = source.image(file, *names)
        width, height = (int(float(length or 0)) for length in told)
        size = (width, height) if width and height else source.open(image, upright_size)
        groups: dict[Any, Object] = {}
        for number, own in enumerate(source.each(partial(convert, size), entries, place)):
            key = (own.name, own.group) if own.group else number
            if groups.setdefault(key, own) is not own:
                groups[key].mask += own.mask
        yield Record(image, file, split, [*groups.values()], label, told=(width, height))


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
            source.declare(category['name'])
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
    if not FLAG.fit([crowd]) or not FLAG.fit([ignored]):
        raise Skip('iscrowd or ignore is not 0 or 1', f'{crowd!r}, {ignored!r}')
    name, mask = categories[entry['category_id']]['name'].strip(), entry.get('segmentation')
    mask = None if mask in (None, [], [[]], {}) else mask
    return Object(name, entry.get('bbox'), mask, bool(crowd or ignored), entry.get('area'))


# YOLO: text files that are named like images; lines are a class and four or more numbers.


def find_yolo(source: Source) -> list[str]:
    files = [path for path in source.find('.txt') if source.named(stem(path))]
    files = [path for path in files if stem(path).lower() not in SPLITS]
    first = [lines[0].split() for path in files[:50] if (lines := source.lines(path))]
    numbers = [line for line in first if len(line) > 4 and line[0].isdecimal()]
    return files if 2 * len(numbers) > len(first) or (_settings(source) and not first) else []


def _settings(source: Source) -> dict:
    """The content of data.yaml, under whatever name."""
    contents = map(source.parse, source.find('.yaml', '.yml'))
    fits = (own for own in contents if isinstance(own, dict))
    return next((own for own in fits if isinstance(own.get('names'), list | dict)), {})


def read_yolo(source: Source, files: Sequence[str]) -> Iterator[Record]:
    settings = _settings(source)
    names = settings.get('names') or source.names
    if isinstance(names, dict):
        listed = {int(number): name for number, name in names.items() if str(number).isdecimal()}
        names = [listed.get(i, f'class_{i}') for i in range(max(listed, default=-1) + 1)]
    source.classes += map(str, names)
    for key in SPLITS:
        given = settings.get(key) or []
        for folder in given if isinstance(given, list) else [given]:
            source.listed.update(dict.fromkeys(_images_in(source, str(folder)), SPLITS[key]))
    convert = partial(_yolo_object, source, 'kpt_shape' in settings)
    labelled: set[str] = set()
    for file in files:
        for own in record(source, file, [stem(file)], source.lines(file), convert):
            labelled.add(own.image)
            yield own
    folders = {image.rpartition('/')[0] for image in labelled}
    for image in source.images.values():
        if image not in labelled and image.rpartition('/')[0] in folders:
            source.report.add('note', 'image without a label file: taken as background', image)
            yield Record(image, image)


def _images_in(source: Source, folder: str) -> list[str]:
    """The images of a folder of data.yaml.

    Roboflow writes ../train/images for train/images, others the place on their disk.
    """
    parts = [part for part in re.split(r'[\\/]', folder) if part not in ('.', '..', '')]
    for start in range(len(parts)):
        prefix = '/'.join(parts[start:]) + '/'
        held = [image for image in source.images.values() if image.startswith(prefix)]
        if held or split_of(f'{parts[start]}/'):
            return held
    return []


def _yolo_object(source: Source, keypoints: bool, size: Size, line: str) -> Object:
    first, *rest = line.split()
    values = [float(value) for value in rest]
    if len(values) < 4 or (len(values) % 2 and not keypoints):
        raise Skip('line is not a class, and a box or a polygon', f'{1 + len(values)} numbers')
    values = values[:4] if keypoints else values
    if not all(-0.01 <= value <= 1.01 for value in values):
        raise Skip('coordinates are not shares of the image, from 0 to 1', line[:60])
    number, names = int(first), source.classes
    if names and not 0 <= number < len(names):
        raise Skip('class is not among the names', f'{number} of {len(names)} names')
    name = names[number] if names else f'class_{number}'
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
        source.declare(entry.findtext('name'), entry.findtext('color'))
    for node in root.iter('image'):
        tags = [tag.get('label', '') for tag in node.findall('tag')]
        shapes = [own for own in node if own.tag != 'tag']
        split = split_of(node.get('subset', '')) or split_of(file)
        told, label = (node.get('width'), node.get('height')), tags[0] if len(tags) == 1 else ''
        yield from record(
            source, file, [node.get('name')], shapes, _cvat_object, told, split, label
        )


def _cvat_object(size: Size, node: Element) -> Object:
    own, more = node.attrib, dict[str, Any]()
    points = [point.split(',') for point in own.get('points', '').split(';') if point]
    if node.tag == 'box':
        points = [[own['xtl'], own['ytl']], [own['xbr'], own['ybr']]]
    elif node.tag == 'ellipse':
        points = [[own['cx'], own['cy']]]
    elif node.tag == 'mask':
        points = [[own['left'], own['top']]]
        runs = [int(run) for run in own['rle'].split(',')]
        pixels = np.repeat(np.arange(len(runs)) % 2, runs)
        more['pixels'] = pixels.reshape(int(own['height']), int(own['width']))
    more['radii'] = own.get('rx', 0), own.get('ry', 0)
    more['turn'] = math.radians(float(own.get('rotation', 0)))
    return shape(own['label'], node.tag, size, points, group=own.get('group_id'), **more)


# JSON of an image or a project: LabelMe, VIA, Supervisely.


def read_labelme(source: Source, file: str, content: dict) -> Iterator[Record]:
    told = content.get('imageWidth'), content.get('imageHeight')
    names = [content['imagePath'], stem(file)]
    yield from record(source, file, names, content['shapes'], _labelme_object, told)


def _labelme_object(size: Size, own: dict) -> Object:
    points, kind = own['points'], own.get('shape_type') or 'polygon'
    radius = math.dist(*points) if kind == 'circle' else 0
    pixels = decode_png(own['mask']) if kind == 'mask' else None
    more: dict[str, Any] = {'radii': (radius, radius), 'pixels': pixels}
    return shape(own['label'], kind, size, points, group=own.get('group_id'), **more)


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
    own, attributes = region['shape_attributes'], region.get('region_attributes') or {}
    keys = [key for key in CLASS_KEYS if key in attributes] or list(attributes)
    name = attributes[keys[0]] if keys else 'object'
    if isinstance(name, dict):  # of a check box
        name = next((key for key, chosen in name.items() if chosen), '')
    points: Iterable[Any]
    if own['name'] == 'rect':
        x, y, w, h = (float(own[key]) for key in ('x', 'y', 'width', 'height'))
        points = [(x, y), (x + w, y + h)]
    elif 'all_points_x' in own:
        points = zip(own['all_points_x'], own['all_points_y'], strict=True)
    else:
        points = [(own['cx'], own['cy'])]
    radii = own.get('rx', own.get('r', 0)), own.get('ry', own.get('r', 0))
    return shape(name, own['name'], size, points, radii=radii, turn=float(own.get('theta', 0)))


def read_supervisely(source: Source, file: str, content: dict) -> Iterator[Record]:
    if not source.classes:
        projects = [source.parse(path) for path in source.find('.json') if stem(path) == 'meta']
        for entry in [entry for project in projects for entry in project['classes']]:
            source.declare(entry['title'], entry.get('color'))
    told = content['size'].get('width'), content['size'].get('height')
    names = [stem(file), stem(stem(file))]  # the label file of a.jpg is a.jpg.json, or a.json
    yield from record(source, file, names, content['objects'], _supervisely_object, told)


def _supervisely_object(size: Size, own: dict) -> Object:
    name, kind = own['classTitle'], own.get('geometryType')
    if kind == 'bitmap':
        pixels = decode_png(own['bitmap']['data'])
        return shape(name, kind, size, [own['bitmap']['origin']], pixels=pixels)
    points = own.get('points') or {}
    holes = points.get('interior') or []
    return shape(name, kind, size, points.get('exterior', []), holes=holes)


FORMATS = {
    'coco': documents('COCO', lambda c: is_coco(c) and not is_panoptic(c), read_coco),
    'cvat': documents('CVAT', 'annotations', read_cvat),
    'labelme': documents('LabelMe', lambda c: c.keys() >= {'shapes', 'imagePath'}, read_labelme),
    'via': documents('VIA', is_via, read_via),
    'supervisely': documents(
        'Supervisely', lambda c: c.keys() >= {'objects', 'size'}, read_supervisely
    ),
    'voc': documents('Pascal VOC', 'annotation', read_voc),
    'yolo': Format('YOLO', find_yolo, read_yolo),
}

"""Readers of formats where pixels or whole images are labelled: masks, label maps, folders, CSV."""

import csv
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

import cv2
import numpy as np
from PIL import Image

from ..datasets.load_image import reason
from ..errors import UserError
from .geometry import rectangle, run_lengths
from .objects import declare, documents, is_panoptic, named
from .source import (
    MASK_WORDS,
    SUFFIXES,
    Object,
    Record,
    Skip,
    Source,
    is_mask,
    split_of,
    stem,
    suffix,
)

IGNORED = 255
VOID = ('void', 'unlabeled', 'unlabelled', 'ignore', 'ignored')
"""Classes whose pixels are ignored."""
SAMPLE = 40
"""Masks that are opened to recognise their kind."""
COLUMNS = {
    'image': 'image filename file_name file image_path img_path path image_id imageid id img name',
    'label': 'class label class_name classname category label_name target breed species',
    'xmin': 'xmin x_min x1 left',
    'ymin': 'ymin y_min y1 top',
    'xmax': 'xmax x_max x2 right',
    'ymax': 'ymax y_max y2 bottom',
}
"""What people call the columns of a CSV file."""
BOX = ('xmin', 'ymin', 'xmax', 'ymax')


# Masks: which file belongs to which image, and what their values mean.


def pairs(source: Source) -> dict[str, list[str]]:
    """The masks of each image: files in a folder, or of a name, that says what they are."""
    by_image: dict[str, list[str]] = defaultdict(list)
    masks = [path for path in source.images.values() if is_mask(path)]
    if any('SegmentationClass' in path for path in masks):
        masks = [path for path in masks if 'SegmentationObject' not in path]
    pictures = [path for path in source.images.values() if not is_mask(path)]
    by_stem, by_folder = defaultdict(list), defaultdict(list)
    for path in pictures:
        by_stem[stem(path).casefold()].append(path)
        by_folder[posixpath.dirname(posixpath.dirname(path))].append(path)
    for mask in masks:
        plain = re.sub(rf'([-_. ]({MASK_WORDS}))+$', '', stem(mask), flags=re.I).casefold()
        found = by_stem.get(stem(mask).casefold()) or by_stem.get(plain)
        # Kaggle's nuclei have ID/images/ID.png and ID/masks/*.png.
        found = found or by_folder[posixpath.dirname(posixpath.dirname(mask)) or '-']
        found = source.nearest(found, posixpath.dirname(mask))
        by_image[found[0] if len(found) == 1 else ''].append(mask)
    return by_image


def read_mask(source: Source, path: str) -> np.ndarray:
    """The values of a mask: (H, W) of integers, or (H, W, 3) of colours.

    Raises:
        Skip: It cannot be read.
    """
    try:
        with Image.open(source.root / path) as image:
            if image.format == 'JPEG':
                raise ValueError('JPEG compression changes its values: export PNG files')
            mode = 'RGB' if image.mode == 'P' and source.palette else image.mode
            values = np.asarray(image.convert('L' if mode == 'LA' else mode))
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise Skip('mask cannot be read', f'{path}: {reason(error)}') from error
    values = values[..., :3] if values.ndim == 3 else values
    grey = values.ndim == 3 and not source.palette and np.ptp(values, axis=2).max() == 0
    values = values[..., 0] if grey else values
    return values.astype(np.uint8) if values.dtype == bool else values


def find_masks(source: Source, kind: str) -> list[str]:
    """The images with masks, if they hold a kind: 'instances', 'colours', or 'labels'."""
    if source.kind is None:
        colours(source)
        source.masks = pairs(source)
        unpaired = source.masks.pop('', [])
        source.kind = _kind_of_masks(source)
        for mask in unpaired if source.kind else ():
            source.report.add('warning', 'mask without an image of its name', mask)
    chosen = source.kind and source.format  # by the person, who knows what the values mean
    return list(source.masks) if chosen or kind == source.kind else []


def _kind_of_masks(source: Source) -> str:
    masks = [*source.masks.values()]
    samples: list[np.ndarray] = []
    for own in masks[:: max(1, len(masks) // SAMPLE)]:
        try:
            samples.append(read_mask(source, own[0]))
        except Skip as skip:
            if not samples and own is masks[-1]:
                source.report.add('warning', *skip.args)
    if not samples:
        return ''
    if any(len(own) > 1 for own in masks):
        return 'instances'
    if any(values.ndim == 3 for values in samples):
        return 'colours'
    return 'instances' if not source.names and _are_instances(samples) else 'labels'


def _are_instances(samples: Sequence[np.ndarray]) -> bool:
    """Whether values number the objects of each image: all from 1, and mostly in one piece."""
    present = [np.setdiff1d(np.unique(values), [0]) for values in samples]
    if max(map(len, present), default=0) < 2:
        return False
    if any(len(own) and own.tolist() != list(range(1, len(own) + 1)) for own in present):
        return False
    pieces = [
        cv2.connectedComponents((values == value).astype(np.uint8))[0] - 1
        for values, own in zip(samples, present, strict=True)
        for value in own[:20]
    ]
    return pieces.count(1) > 0.8 * len(pieces)


def colours(source: Source) -> None:
    """Read a list of colours and classes: label_colors.txt, class_dict.csv, labelmap.txt."""
    number = r'(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})'
    line = rf'(?:(\D.*?)[\s,;:]+)?{number}(?:[\s,;:]+(.*?))?[\s,;:]*'
    for path in source.find('.txt', '.csv'):
        if re.search(r'colou?r|class|label', posixpath.basename(path), re.I):
            found = [re.fullmatch(line, text) for text in source.lines(path)]
            entries = [match for match in found if match and (match[1] or match[5])]
            if len(entries) > 1 and len(entries) >= len(found) - 2:
                for match in entries:
                    name = (match[1] or match[5]).strip()
                    red, green, blue = (min(int(match[i]), 255) for i in (2, 3, 4))
                    source.palette[name] = red, green, blue
                return


def read_instance_masks(source: Source, images: Sequence[str]) -> Iterator[Record]:
    name = source.names[0] if len(source.names) == 1 else 'object'
    for image in images:
        masks = source.masks[image]
        with source.entry(image):
            objects: list[Object] = []
            for mask in masks:
                values = read_mask(source, mask)
                values = values.max(axis=2) if values.ndim == 3 else values
                size = values.shape[1], values.shape[0]
                numbers = [values.max()] if len(masks) > 1 else np.unique(values)
                objects += [
                    Object(name, mask=run_lengths(values == value)) for value in numbers if value
                ]
            yield Record(image, masks[0], split_of(masks[0]), objects, told=size)


def read_panoptic(source: Source, file: str, content: dict) -> Iterator[Record]:
    """Records of COCO's panoptic files, which have PNG files of ids beside them."""
    categories = {category['id']: category for category in content['categories']}
    for category in categories.values():
        if category.get('isthing', 1) or source.task == 'segmentation':
            declare(source, named(category['name']), None)
    names = {image['id']: image['file_name'] for image in content['images']}
    for entry in content['annotations']:
        with source.entry(f'{file}, image {entry.get("image_id")}'):
            mask = source.image(posixpath.splitext(file)[0] + '/', entry['file_name'])
            name = names[entry['image_id']]
            others = [path for path in source.named(name) if path != mask]
            image = others[0] if len(others) == 1 else source.image(file, name)
            values = read_mask(source, mask).astype(np.int64)
            ids = values if values.ndim == 2 else values @ np.array([1, 256, 65536])
            read = partial(_segment, source, categories, ids)
            objects = source.each(read, entry['segments_info'], f'{file}, {mask}')
            size = ids.shape[1], ids.shape[0]
            yield Record(image, file, split_of(file), objects, told=size)


def _segment(source: Source, categories: dict, ids: np.ndarray, segment: dict) -> Object | None:
    category = categories[segment['category_id']]
    name = named(category['name'])
    if name not in source.classes:
        what = 'segment of stuff: only for --task segmentation'
        source.report.add('note', what, name)
        return None
    mask = run_lengths(ids == segment['id'])
    return Object(name, None, mask, bool(segment.get('iscrowd')), segment.get('area'))


PANOPTIC = documents('.json', is_panoptic, read_panoptic)


def read_maps(source: Source, images: Sequence[str]) -> Iterator[Record]:
    """Records of label maps and colour masks; values without a name get one."""
    present: set[int] = set()
    usable = []
    for image in images:
        with source.entry(image):
            present |= set(np.unique(_codes(read_mask(source, source.masks[image][0]))).tolist())
            usable.append(image)
            for second in source.masks[image][1:]:
                source.report.add('warning', 'second label map of an image: not used', second)
            if len(present) > 1000:
                what = 'has more than 1000 colours, so masks are images, or compressed with loss'
                raise UserError(
                    f'{source.masks[image][0]} in {source.root} {what}: export PNG masks'
                )
    names = {_code(colour): name for name, colour in source.palette.items()}
    if not names and max(present, default=0) > 1 << 24:
        names = {value: f'class_{number}' for number, value in enumerate(sorted(present))}
        source.palette |= {name: _colour(value) for value, name in names.items()}
    elif not names and source.names:
        names = dict(enumerate(source.names))
    elif not names and 0 in present and len(present) == 2:
        names = {0: 'background', max(present): 'foreground'}
    elif not names:
        names = {value: f'class_{value}' for value in sorted(present - {IGNORED})}
    source.classes += [name for name in names.values() if name.lower() not in VOID]
    numbers = {name: number for number, name in enumerate(source.classes)}
    table = {value: numbers.get(name, IGNORED) for value, name in names.items()}
    if len(numbers) > IGNORED:
        raise UserError(f'{source.root} has {len(numbers)} classes: label maps have at most 255')
    for image in usable:
        mask = source.masks[image][0]
        yield Record(
            image, mask, split_of(mask), label_map=partial(_label_map, source, mask, table)
        )


def _label_map(source: Source, mask: str, table: dict[int, int]) -> np.ndarray:
    codes = _codes(read_mask(source, mask))
    values, inverse = np.unique(codes, return_inverse=True)
    for value in values.tolist():
        if value not in table and value != IGNORED:
            shown = _colour(value) if value > 1 << 24 else value
            source.report.add('warning', 'value without a class: ignored', f'{mask}: {shown}')
    labels = np.array([table.get(value, IGNORED) for value in values.tolist()], np.uint8)
    return labels[inverse].reshape(codes.shape)


def _codes(values: np.ndarray) -> np.ndarray:
    """One number for each pixel; those of colours are above 2^24."""
    if values.ndim == 2:
        return values.astype(np.int64)
    return values.astype(np.int64) @ np.array([65536, 256, 1]) + (1 << 24)


def _code(colour: Sequence[int]) -> int:
    return int(_codes(np.array([[colour]], np.int64))[0, 0])


def _colour(code: int) -> tuple[int, int, int]:
    return code >> 16 & 255, code >> 8 & 255, code & 255


# Classes of whole images, and CSV.


def find_csv(source: Source) -> list[str]:
    """CSV files with columns, or RetinaNet's order, for image and class, and maybe corners."""
    tables = {path: _csv_rows(source, path) for path in source.find('.csv', '.tsv')}
    return [
        path
        for path, rows in tables.items()
        if any(source.named(posixpath.basename(row['image'])) for _, row in rows[:SAMPLE])
    ]


def _csv_rows(source: Source, path: str) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with their line; [] if it has no column of images."""
    lines = source.lines(path)
    delimiter = max('\t;,', key=lines[0].count) if lines else ','
    rows = list(csv.reader(lines, delimiter=delimiter))
    if not rows:
        return []
    keys: dict[str, int] = {}
    for number, title in enumerate(rows[0]):
        for key, titles in COLUMNS.items():
            if title.strip().lower() in titles.split():
                keys.setdefault(key, number)
    header = 'image' in keys and 'label' in keys
    if not header:
        orders = {2: ('image', 'label'), 6: ('image', *BOX, 'label')}
        keys = {key: number for number, key in enumerate(orders.get(len(rows[0]), ()))}
        if not keys or suffix(rows[0][0]) not in SUFFIXES:
            return []
    return [
        (f'line {number}', {key: row[i].strip() for key, i in keys.items() if i < len(row)})
        for number, row in enumerate(rows, 1)
        if number > header
    ]


def read_csv(source: Source, files: Sequence[str]) -> Iterator[Record]:
    for file in files:
        by_image: dict[str, Record] = {}
        for line, row in _csv_rows(source, file):
            with source.entry(f'{file}, {line}'):
                image = source.image(file, row['image'])
                record = Record(image, file, split_of(file))
                record = by_image.setdefault(image, record)
                if 'xmin' in row:
                    if any(row[key] for key in BOX) or row['label']:
                        if not row['label']:
                            raise Skip('row without a class')
                        box = rectangle(*(row[key] for key in BOX))
                        record.objects.append(Object(row['label'], box))
                elif not row['label']:
                    raise Skip('row without a class')
                elif record.label not in ('', row['label']):
                    raise Skip('image with two classes', f'{record.label} and {row["label"]}')
                else:
                    record.label = row['label']
        yield from by_image.values()


def find_folders(source: Source) -> list[str]:
    """Images in folders that are named after their classes."""
    images = list(source.images.values())
    masked = sum(map(is_mask, images))  # all of them if with mask and without mask are classes
    classes = set(_classes(source).values()) - {''}
    plain = masked in (0, len(images)) or source.format == 'folders'
    return images if len(classes) > 1 and plain else []


def read_folders(source: Source, images: Sequence[str]) -> Iterator[Record]:
    classes = _classes(source)
    for image in images:
        if classes[image]:
            yield Record(image, image, label=classes[image])
        else:
            source.report.add('warning', 'image outside of the class folders', image)


def _classes(source: Source) -> dict[str, str]:
    """The class folder of each image: the first below what all share that names no split."""
    folders = {image: posixpath.dirname(image) for image in source.images.values()}
    inside = [folder for folder in folders.values() if folder]
    shared = posixpath.commonpath(inside) if inside else ''
    below = {image: folder[len(shared) :].split('/') for image, folder in folders.items()}
    return {
        image: next((part for part in parts if part and not split_of(part + '/')), '')
        for image, parts in below.items()
    }

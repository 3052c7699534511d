"""Readers of formats where pixels or whole images are labelled: masks, label maps, folders, CSV."""

import csv
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..errors import UserError
from .geometry import rectangle, run_lengths
from .objects import Format, documents, is_panoptic
from .source import MASK_WORDS, SUFFIXES, Object, Record, Skip, Source, is_mask, split_of, stem

IGNORED = 255
VOID = ('void', 'unlabeled', 'unlabelled', 'ignore', 'ignored')
"""Classes whose pixels are ignored."""
COLOUR = 1 << 24
"""Values of masks from here on are colours; those below are numbers."""
SAMPLE = 40
"""Masks, or rows of a table, that are read to recognise their kind."""
BOX = ('xmin', 'ymin', 'xmax', 'ymax')
COLUMNS = {
    'image': 'image filename file_name file image_path img_path path image_id imageid id img name',
    'label': 'class label class_name classname category label_name target breed species',
    'xmin': 'xmin x_min x1 left',
    'ymin': 'ymin y_min y1 top',
    'xmax': 'xmax x_max x2 right',
    'ymax': 'ymax y_max y2 bottom',
}
"""What people call the columns of a CSV file."""
ORDERS: dict[int, tuple[str, ...]] = {2: ('image', 'label'), 6: ('image', *BOX, 'label')}
"""The columns of a CSV file without a header, by their number."""


# Masks: which file belongs to which image, and what their values mean.


def pairs(source: Source) -> dict[str, list[str]]:
    """The masks of each image: files in a folder, or of a name, that says what they are."""
    by_image: dict[str, list[str]] = defaultdict(list)
    masks = [path for path in source.images.values() if is_mask(path)]
    if any('SegmentationClass' in path for path in masks):
        masks = [path for path in masks if 'SegmentationObject' not in path]
    by_folder = defaultdict(list)
    for path in source.images.values():
        if not is_mask(path):
            by_folder[posixpath.dirname(posixpath.dirname(path))].append(path)
    for mask in masks:
        plain = re.sub(rf'([-_. ]({MASK_WORDS}))+$', '', stem(mask), flags=re.I)
        images = dict.fromkeys(source.named(stem(mask)) + source.named(plain))
        found = [path for path in images if not is_mask(path)]
        # Kaggle's nuclei have ID/images/ID.png and ID/masks/*.png.
        found = found or by_folder[posixpath.dirname(posixpath.dirname(mask)) or '-']
        found = source.nearest(found, posixpath.dirname(mask))
        by_image[found[0] if len(found) == 1 else ''].append(mask)
    return by_image


def read_mask(source: Source, path: str) -> np.ndarray:
    """The values of a mask (H, W): numbers, or ``COLOUR`` + 65536 R + 256 G + B."""

    def read(image: Image.Image) -> np.ndarray:
        if image.format == 'JPEG':
            raise ValueError('JPEG compression changes its values: export PNG files')
        mode = 'RGB' if image.mode == 'P' and source.palette else image.mode
        values = np.asarray(image.convert('L' if mode == 'LA' else mode))
        if values.ndim == 2:
            return values.astype(np.uint8) if values.dtype == bool else values
        if not source.palette and np.ptp(values[..., :3], axis=2).max() == 0:
            return values[..., 0]
        return values[..., :3].astype(np.int32) @ np.array([65536, 256, 1], np.int32) + COLOUR

    return source.open(path, read, 'mask')


def find_masks(kind: str, source: Source) -> list[str]:
    """The images with masks, if they hold a kind: 'instances', 'colours', or 'labels'."""
    if source.kind is None:
        find_palette(source)
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
    if any(values.max() >= COLOUR for values in samples):
        return 'colours'
    return 'instances' if not source.names and _are_instances(samples) else 'labels'


def _are_instances(samples: Sequence[np.ndarray]) -> bool:
    """Whether values number the objects of each image: all from 1, and mostly in one piece."""
    present = [np.setdiff1d(values, [0]).tolist() for values in samples]
    if max(map(len, present)) < 2 or any(own != [*range(1, len(own) + 1)] for own in present):
        return False
    single = [
        cv2.connectedComponents((values == value).astype(np.uint8))[0] == 2
        for values, own in zip(samples, present, strict=True)
        for value in own[:20]
    ]
    return sum(single) > 0.8 * len(single)


def find_palette(source: Source) -> None:
    """Read a list of colours and classes: label_colors.txt, class_dict.csv, labelmap.txt."""
    number = r'(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})'
    line = rf'(?:(\D.*?)[\s,;:]+)?{number}(?:[\s,;:]+(.*?))?[\s,;:]*'
    for path in source.find('.txt', '.csv'):
        if re.search(r'colou?r|class|label', posixpath.basename(path), re.I):
            found = [re.fullmatch(line, text) for text in source.lines(path)]
            entries = [match for match in found if match and (match[1] or match[5])]
            if len(entries) > 1 and len(entries) >= len(found) - 2:
                for match in entries:
                    red, green, blue = (min(int(match[i]), 255) for i in (2, 3, 4))
                    source.palette[(match[1] or match[5]).strip()] = red, green, blue
                return


def read_instance_masks(source: Source, images: Sequence[str]) -> Iterator[Record]:
    name = source.names[0] if len(source.names) == 1 else 'object'
    for image in images:
        masks = source.masks[image]
        with source.entry(image):
            objects: list[Object] = []
            for mask in masks:
                values = read_mask(source, mask)
                numbers = [values.max()] if len(masks) > 1 else np.unique(values)
                present = [own for own in numbers if own not in (0, COLOUR)]
                objects += [Object(name, mask=run_lengths(values == own)) for own in present]
            yield Record(image, masks[0], split_of(masks[0]), objects)


def read_panoptic(source: Source, file: str, content: dict) -> Iterator[Record]:
    """Records of COCO's panoptic files, which have PNG files of ids beside them."""
    categories = {category['id']: category for category in content['categories']}
    for category in categories.values():
        if category.get('isthing', 1) or source.task == 'segmentation':
            source.declare(category['name'])
    names = {image['id']: image['file_name'] for image in content['images']}
    for entry in content['annotations']:
        with source.entry(f'{file}, image {entry.get("image_id")}'):
            mask = source.image(posixpath.splitext(file)[0] + '/', entry['file_name'])
            name = names[entry['image_id']]
            others = [path for path in source.named(name) if path != mask]
            image = others[0] if len(others) == 1 else source.image(file, name)
            values = read_mask(source, mask).astype(np.int64)
            red, green, blue = _colour(values)
            ids = np.where(values < COLOUR, values, red + 256 * green + 65536 * blue)
            read = partial(_segment, source, categories, ids)
            objects = source.each(read, entry['segments_info'], f'{file}, {mask}')
            yield Record(image, file, split_of(file), objects)


def _segment(source: Source, categories: dict, ids: np.ndarray, segment: dict) -> Object | None:
    name = categories[segment['category_id']]['name'].strip()
    if name not in source.classes:
        source.report.add('note', 'segment of stuff: only for --task segmentation', name)
        return None
    mask = run_lengths(ids == segment['id'])
    return Object(name, None, mask, bool(segment.get('iscrowd')), segment.get('area'))


def read_maps(source: Source, images: Sequence[str]) -> Iterator[Record]:
    """Records of label maps and colour masks; values without a name get one."""
    present: set[int] = set()
    usable = {}
    for image in images:
        mask, *more = source.masks[image]
        with source.entry(image):
            present |= set(np.unique(read_mask(source, mask)).tolist())
            usable[image] = mask
            for second in more:
                source.report.add('warning', 'second label map of an image: not used', second)
        if len(present) > 1000:
            what = 'has more than 1000 colours, so masks are images, or compressed with loss'
            raise UserError(f'{mask} in {source.root} {what}: export PNG masks')
    names = _names_of_values(source, present)
    source.classes += [name for name in names.values() if name.lower() not in VOID]
    numbers = {name: number for number, name in enumerate(source.classes)}
    if len(numbers) > IGNORED:
        raise UserError(f'{source.root} has {len(numbers)} classes: label maps have at most 255')
    table = {value: numbers.get(name, IGNORED) for value, name in names.items()}
    for image, mask in usable.items():
        read = partial(_label_map, source, mask, table)
        yield Record(image, mask, split_of(mask), label_map=read)


def _names_of_values(source: Source, present: set[int]) -> dict[int, str]:
    if source.palette:
        colours = source.palette.items()
        return {COLOUR + (r << 16) + (g << 8) + b: name for name, (r, g, b) in colours}
    if max(present, default=0) >= COLOUR:
        names = {value: f'class_{number}' for number, value in enumerate(sorted(present))}
        source.palette |= {name: _colour(value) for value, name in names.items()}
        return names
    if source.names:
        return dict(enumerate(source.names))
    if 0 in present and len(present) == 2:
        return {0: 'background', max(present): 'foreground'}
    return {value: f'class_{value}' for value in sorted(present - {IGNORED})}


def _label_map(source: Source, mask: str, table: dict[int, int]) -> np.ndarray:
    codes = read_mask(source, mask)
    values, inverse = np.unique(codes, return_inverse=True)
    for value in values.tolist():
        if value not in table and value != IGNORED:
            shown = _colour(value) if value >= COLOUR else value
            source.report.add('warning', 'value without a class: ignored', f'{mask}: {shown}')
    labels = np.array([table.get(value, IGNORED) for value in values.tolist()], np.uint8)
    return labels[inverse].reshape(codes.shape)


def _colour(values: Any) -> tuple[Any, Any, Any]:
    return values >> 16 & 255, values >> 8 & 255, values & 255


# Classes of whole images, and CSV.


def find_csv(source: Source) -> list[str]:
    """CSV files with columns, or RetinaNet's order, for image and class, and maybe corners."""

    def fits(path: str) -> bool:
        names = (row.get('image', '') for _, row in _rows(source, path)[:SAMPLE])
        return any(source.named(posixpath.basename(name)) for name in names)

    return [path for path in source.find('.csv', '.tsv') if fits(path)]


def _rows(source: Source, path: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with their line; [] if it has no column of images."""
    lines = source.lines(path)
    delimiter = max('\t;,', key=lines[0].count) if lines else ','
    rows = list(csv.reader(lines, delimiter=delimiter)) or [[]]
    titles = [title.strip().lower() for title in rows[0]]
    keys = [next((k for k, own in COLUMNS.items() if t in own.split()), '') for t in titles]
    header = 'image' in keys and 'label' in keys
    if not header:
        keys = [*ORDERS.get(len(titles), ())]
        if not keys or not titles[0].endswith(SUFFIXES):
            return []
    # Of two columns for one thing, the first counts.
    entries = [[*zip(keys, map(str.strip, row), strict=False)] for row in rows]
    return [(line, dict(own[::-1])) for line, own in enumerate(entries, 1)][header:]


def read_csv(source: Source, files: Sequence[str]) -> Iterator[Record]:
    for file in files:
        by_image: dict[str, Record] = {}
        for line, row in _rows(source, file):
            with source.entry(f'{file}, line {line}'):
                image = source.image(file, row['image'])
                record = by_image.setdefault(image, Record(image, file, split_of(file)))
                label, corners = row['label'], [row[key] for key in BOX if 'xmin' in row]
                if not label and (any(corners) or not corners):
                    raise Skip('row without a class')
                if corners and label:
                    record.objects.append(Object(label, rectangle(*corners)))
                elif record.label not in ('', label):
                    raise Skip('image with two classes', f'{record.label} and {label}')
                else:
                    record.label = label
        yield from by_image.values()


def find_folders(source: Source) -> list[str]:
    """Images in folders that are named after their classes."""
    classes = _classes(source)
    masked = sum(map(is_mask, classes))  # all of them if with mask and without mask are classes
    plain = masked in (0, len(classes)) or source.format == 'folders'
    return [*classes] if plain and len({*classes.values()} - {''}) > 1 else []


def read_folders(source: Source, images: Sequence[str]) -> Iterator[Record]:
    for image, label in _classes(source).items():
        if label:
            yield Record(image, image, label=label)
        else:
            source.report.add('warning', 'image outside of the class folders', image)


def _classes(source: Source) -> dict[str, str]:
    """The class folder of each image: the first below what all share that names no split."""
    folders = {image: posixpath.dirname(image) for image in source.images.values()}
    inside = [folder for folder in folders.values() if folder]
    shared = posixpath.commonpath(inside) if inside else ''

    def first(folder: str) -> str:
        parts = folder[len(shared) :].split('/')
        return next((part for part in parts if part and not split_of(part + '/')), '')

    return {image: first(folder) for image, folder in folders.items()}


FORMATS = {
    'panoptic': documents('COCO panoptic', is_panoptic, read_panoptic),
    'csv': Format('CSV', find_csv, read_csv),
    'instance-masks': Format(
        'instance mask', partial(find_masks, 'instances'), read_instance_masks
    ),
    'colour-masks': Format('colour mask', partial(find_masks, 'colours'), read_maps),
    'label-maps': Format('label map', partial(find_masks, 'labels'), read_maps),
    'folders': Format('class folder', find_folders, read_folders),
}

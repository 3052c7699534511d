"""Annotation files in COCO's format: reading, and the rules for the fields of their entries."""

import json
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple

from ...errors import UserError


class Field(NamedTuple):
    """The rule for a field: whether all values of a list fit, and what each must be."""

    fit: Callable[[list], bool]
    expected: str


def are(values: Iterable, *kinds: type) -> bool:
    return set(map(type, values)) <= {*kinds}


def finite(values: Any, count: int | None = None) -> bool:
    """Whether ``values`` is a list of finite numbers, of length ``count`` if that is given."""
    if not isinstance(values, list) or count not in (None, len(values)):
        return False
    if not are(values, int, float):
        return False
    return not values or (min(values) > -1e15 and max(values) < 1e15 and sum(values) == sum(values))


def between(values: list, low: int, high: int) -> bool:
    return are(values, int) and (not values or (low <= min(values) and max(values) < high))


def are_boxes(values: list) -> bool:
    return are(values, list) and {*map(len, values)} <= {4} and finite([*chain(*values)])


# Evaluators count ids in 64 bits, and some of them take no negative ones.
ID = Field(
    lambda values: between(values, 0, 2**63),
    'a whole number from 0: renumber them, in the annotations too',
)
# They are renumbered before an evaluation (``EvaluationIdsHook``).
ANNOTATION_ID = Field(
    lambda values: (
        are(values, int, float, str) and finite([value for value in values if type(value) is float])
    ),
    'a number or a text',
)
LENGTH = Field(lambda values: between(values, 1, 10**6), 'a whole number of pixels')
FLAG = Field(
    lambda values: are(values, int, float, bool, type(None)) and {*values} <= {None, 0, 1}, '0 or 1'
)
TEXT = Field(lambda values: are(values, str), 'a text')
FILE_NAME = Field(
    lambda values: are(values, str) and all(values) and '://' not in '\n'.join(values),
    'the path of a file in the image folder',
)
FIELDS: dict[str, dict[str, Field]] = {
    'categories': {'id': ID, 'name': TEXT},
    'images': {'id': ID, 'file_name': FILE_NAME, 'width': LENGTH, 'height': LENGTH},
    'annotations': {
        'id': ANNOTATION_ID,
        'image_id': ID,
        'category_id': ID,
        'bbox': Field(are_boxes, 'four finite numbers: x, y, width, height'),
        'area': Field(finite, 'a number: set it to the pixels of the mask, or of the box'),
        'iscrowd': FLAG,
        'ignore': FLAG,
    },
}


def wrong_fields(key: str, *entries: Any) -> list[str]:
    """The fields that are missing or invalid in entries of the list ``key`` of a file."""
    if not are(entries, dict):
        return list(FIELDS[key])
    return [
        name
        for name, field in FIELDS[key].items()
        if not field.fit([entry.get(name) for entry in entries])
    ]


def brief(entry: Any) -> str:
    """Format an entry in one line, without its mask."""
    if isinstance(entry, dict):
        entry = {name: value for name, value in entry.items() if name != 'segmentation'}
    text = repr(entry)
    return text if len(text) <= 120 else f'{text[:117]}...'


def read_coco(path: str, *, need_annotations: bool) -> dict:
    """Read an annotation file in COCO's format."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f'annotation file {path} cannot be read as JSON in UTF-8: {error}'
        ) from error
    if not isinstance(content, dict):
        content = {}
    keys = ['images', 'categories']
    keys += ['annotations'] * (need_annotations or 'annotations' in content)
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f"annotation file {path} is not in COCO's format: it has no list {', '.join(missing)}"
        )
    for key in keys:
        if not content[key]:
            raise UserError(f'annotation file {path} lists no {key}: export it again')
    return content


def check_categories(loader: str, path: str, content: dict, classes: tuple[str, ...]) -> list[str]:
    """Check that all classes of a config are categories of a COCO file, in the same order.

    Returns:
        The categories that are not classes, whose annotations are not used.

    Raises:
        UserError: A class is missing in the file, or the order differs.
    """
    names = [category['name'] for category in content['categories']]
    ignored = [name for name in names if name not in classes]
    missing = [name for name in classes if name not in names]
    if missing:
        written = {name.strip().casefold(): name for name in ignored}
        alike = [
            f'{name!r} is {written[name.strip().casefold()]!r} in the file'
            for name in missing
            if name.strip().casefold() in written
        ]
        raise UserError(
            f'the classes of the config do not match the categories of {path}: the file lacks '
            f'{", ".join(missing)}; the config lacks {", ".join(ignored) or "none"}'
            f'{"; " if alike else ""}{", ".join(alike)}. Set '
            f'{loader}.dataset.metainfo.classes and the num_classes of the heads as in the file'
        )
    used = [name for name in names if name in classes]
    if used != list(classes):
        # mmdet numbers labels in the order of the file, but names them in that of the config.
        raise UserError(
            f'the classes of the config are in another order than the categories of {path}, so '
            f'names would be swapped: set {loader}.dataset.metainfo.classes to {", ".join(used)}'
        )
    return ignored

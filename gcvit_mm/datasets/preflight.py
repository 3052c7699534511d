"""Quick checks of the data of a config before anything is built."""

import json
import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file
from mmengine.logging import print_log

from ..config import metainfo_of
from ..errors import UserError
from ..run_config import check_places, full_path, local_datasets
from .coco_format import brief, find_mismatch

# Parts of a model whose ``num_classes`` is that of the data set.
CLASS_COUNTERS = (
    'bbox_head',
    'mask_head',
    'decode_head',
    'auxiliary_head',
    'model.head',
    'data_preprocessor',
)


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that the data of some data loaders exist and match the config.

    Args:
        cfg: The config.
        loaders: Keys of the config, such as 'train_dataloader'; missing ones are skipped.

    Raises:
        UserError: A folder or file is missing, an annotation file cannot be read, or its
            categories do not match the classes of the config.
    """
    check_places(cfg, loaders)
    for loader, dataset in local_datasets(cfg, loaders):
        classes = _classes(cfg, dataset)
        is_coco = dataset.get('ann_file', '').endswith('.json')
        if is_coco and cfg.get('default_scope') == 'mmdet':
            _check_coco(loader, dataset, classes)
        check_heads(cfg, loader, classes)


def _check_coco(loader: str, dataset: ConfigDict, classes: tuple[str, ...]) -> None:
    path = full_path(dataset, dataset.ann_file)
    # Lists of test images may have no annotations.
    content = read_coco(path, need_annotations=loader != 'test_dataloader')
    check_entries(path, content)
    ignored = check_categories(loader, path, content, classes)
    if ignored:
        print_log(
            f'{path}: skipped {len(ignored)} categories that are not classes of the config: '
            f'{", ".join(ignored)}',
            logger='current',
        )


def read_coco(path: str, *, need_annotations: bool) -> dict:
    """Read an annotation file in COCO's format.

    Raises:
        UserError: The file is not JSON, or not in COCO's format.
    """
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f'annotation file {path} cannot be read as JSON: {error}') from error
    if not isinstance(content, dict):
        content = {}
    keys = ['images', 'categories'] + ['annotations'] * need_annotations
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f"annotation file {path} is not in COCO's format: it has no list {', '.join(missing)}"
        )
    for entry in content['categories']:
        named = isinstance(entry, dict) and isinstance(entry.get('name'), str)
        if not named or not isinstance(entry.get('id'), int | str):
            raise UserError(
                f"annotation file {path} is not in COCO's format: category {entry} has no id or "
                'no name'
            )
    return content


def check_entries(path: str, content: dict) -> None:
    """Raise a ``UserError`` for the first unusable image or annotation of a COCO file."""
    if not content['images']:
        raise UserError(f'annotation file {path} lists no images')
    for key in ('images', 'annotations'):
        for i, entry in enumerate(content.get(key, [])):
            mismatch = find_mismatch(key, entry)
            if mismatch:
                raise UserError(
                    f'annotation file {path}: {key}[{i}]: {mismatch}: {brief(entry)}. '
                    'Run tools/check_dataset.py to list all problems'
                )


def check_categories(loader: str, path: str, content: dict, classes: tuple[str, ...]) -> list[str]:
    """Check that all classes of a config are categories of a COCO file, in the same order.

    Returns:
        The categories that are not classes, whose annotations are not used.

    Raises:
        UserError: A class is missing in the file, or the order differs.
    """
    names = [category['name'] for category in content['categories']]
    missing = [name for name in classes if name not in names]
    ignored = [name for name in names if name not in classes]
    if missing:
        raise UserError(
            f'the classes of the config do not match the categories of {path}: the file lacks '
            f'{", ".join(missing)}; the config lacks {", ".join(ignored) or "none"}. Set '
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


def check_heads(cfg: Config, loader: str, classes: tuple[str, ...]) -> None:
    """Raise a ``UserError`` if a head has another number of classes than the data set.

    mmpretrain's data preprocessor, which makes the targets of mixed images, is checked too.
    """
    counts = _num_classes({'model': cfg.model, 'data_preprocessor': cfg.get('data_preprocessor')})
    for key, count in counts:
        if classes and count != len(classes):
            raise UserError(
                f'{key}.num_classes is {count}, but {loader}.dataset has {len(classes)} classes '
                f'({", ".join(classes[:5])}{", ..." if len(classes) > 5 else ""}): make them equal'
            )


def _classes(cfg: Config, dataset: ConfigDict) -> tuple[str, ...]:
    classes = metainfo_of(cfg, dataset).get('classes') or ()
    if isinstance(classes, str):
        return tuple(list_from_file(classes)) if os.path.isfile(classes) else (classes,)
    return tuple(classes)


def _num_classes(node: Any, key: str = '') -> Iterator[tuple[str, int]]:
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    # mmseg's auxiliary heads for edges have one class with all data sets.
    edges = 'auxiliary_head' in key and node.get('num_classes') == 1
    if 'num_classes' in node and key.rstrip('.0123456789').endswith(CLASS_COUNTERS) and not edges:
        yield key, node['num_classes']
    for name, item in node.items():
        yield from _num_classes(item, f'{key}.{name}' if key else name)

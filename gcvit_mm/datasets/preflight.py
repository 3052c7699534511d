"""Checks of a config's data before anything is built: cheap, and with the file's name."""

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
from .coco_format import brief, find_misfit

# The parts of a model that count the data set's classes.
COUNTING = (
    'bbox_head',
    'mask_head',
    'decode_head',
    'auxiliary_head',
    'model.head',
    'data_preprocessor',
)


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that the data of some data loaders is where the config says, and is what it says.

    Args:
        cfg: The config.
        loaders: 'train_dataloader' and so on; absent ones are skipped.

    Raises:
        UserError: A folder or file is missing, an annotation file cannot be read, or its
            categories are not the config's classes.
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
    # Lists of test images come without annotations.
    content = read_coco(path, need_annotations=loader != 'test_dataloader')
    check_entries(path, content)
    ignored = check_categories(loader, path, content, classes)
    if ignored:
        print_log(
            f'{path}: {len(ignored)} categories are no classes of the config and are left out: '
            f'{", ".join(ignored)}',
            logger='current',
        )


def read_coco(path: str, *, need_annotations: bool) -> dict:
    """Read annotations in COCO's format.

    Raises:
        UserError: The file is not JSON, or not of that structure.
    """
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f'annotation file {path} cannot be read as JSON: {error}') from error
    if not isinstance(content, dict):
        content = {}
    keys = ['images', 'categories'] + ['annotations'] * need_annotations
    lacking = [key for key in keys if not isinstance(content.get(key), list)]
    if lacking:
        raise UserError(
            f'annotation file {path} is not of COCO: it has no list of {", ".join(lacking)}'
        )
    for entry in content['categories']:
        named = isinstance(entry, dict) and isinstance(entry.get('name'), str)
        if not named or not isinstance(entry.get('id'), int | str):
            raise UserError(
                f'annotation file {path} is not of COCO: a category is {entry}, without id and name'
            )
    return content


def check_entries(path: str, content: dict) -> None:
    """Raise ``UserError`` for the first image or annotation of a COCO file that cannot be used."""
    if not content['images']:
        raise UserError(f'annotation file {path} lists no images')
    for key in ('images', 'annotations'):
        for i, entry in enumerate(content.get(key, [])):
            misfit = find_misfit(key, entry)
            if misfit:
                raise UserError(
                    f'annotation file {path}: {key}[{i}]: {misfit}: {brief(entry)}. '
                    'tools/check_dataset.py lists everything that is wrong'
                )


def check_categories(loader: str, path: str, content: dict, classes: tuple[str, ...]) -> list[str]:
    """Check that all classes of a config are categories of a COCO file, in the same order.

    Returns:
        The categories that are no classes: their annotations are not used.

    Raises:
        UserError: The file lacks a class, or has them in another order.
    """
    names = [category['name'] for category in content['categories']]
    missing = [name for name in classes if name not in names]
    ignored = [name for name in names if name not in classes]
    if missing:
        raise UserError(
            f'the classes of the config are not the categories of {path}: the file lacks '
            f'{", ".join(missing)}; the config lacks {", ".join(ignored) or "none"}. Set '
            f"{loader}.dataset.metainfo.classes (and the num_classes of the heads) to the file's"
        )
    used = [name for name in names if name in classes]
    if used != list(classes):
        # mmdet numbers the labels as the file does, and names them as the config does.
        raise UserError(
            f'the classes of the config are the categories of {path} in another order, which '
            f"exchanges their names: set {loader}.dataset.metainfo.classes to the file's order: "
            f'{", ".join(used)}'
        )
    return ignored


def check_heads(cfg: Config, loader: str, classes: tuple[str, ...]) -> None:
    """Raise ``UserError`` where a head counts other classes than a data set has.

    So does mmpretrain's data preprocessor, which makes the targets of mixed images.
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
    # mmseg's auxiliary heads for edges have one class, whatever the data set's are.
    edges = 'auxiliary_head' in key and node.get('num_classes') == 1
    if 'num_classes' in node and key.rstrip('.0123456789').endswith(COUNTING) and not edges:
        yield key, node['num_classes']
    for name, item in node.items():
        yield from _num_classes(item, f'{key}.{name}' if key else name)

"""Checks of a config's data before anything is built: cheap, and with the file's name."""

import json
import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..errors import UserError
from .launch import leaf_datasets


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that the data of some data loaders is where the config says, and is what it says.

    Args:
        cfg: The config.
        loaders: 'train_dataloader' and so on; absent ones are passed over.

    Raises:
        UserError: A folder or file is missing, an annotation file cannot be read, or its
            categories are not the config's classes.
    """
    for loader in loaders:
        for dataset in leaf_datasets(cfg.get(loader)):
            if '://' in (dataset.get('data_root') or ''):
                continue  # a remote store: its own client reports
            _check_paths(loader, dataset)
            is_coco = dataset.get('ann_file', '').endswith('.json')
            if is_coco and cfg.get('default_scope') == 'mmdet':
                _check_categories(cfg, loader, dataset)
        _check_evaluator(cfg, loader.replace('dataloader', 'evaluator'))


def _join(dataset: ConfigDict, path: str) -> str:
    return os.path.join(dataset.get('data_root') or '', path)


def _check_paths(loader: str, dataset: ConfigDict) -> None:
    root = dataset.get('data_root')
    option = f'--cfg-options {loader}.dataset.data_root=FOLDER'
    if root and not os.path.isdir(root):
        raise UserError(
            f'data folder {root} ({loader}) does not exist: put the data there, or name its place '
            f'by {option}'
        )
    prefixes = dataset.get('data_prefix') or {}
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        if not os.path.isdir(_join(dataset, prefix)):
            raise UserError(f'image folder {_join(dataset, prefix)} ({loader}) does not exist')
    ann_file = dataset.get('ann_file')
    if ann_file and not os.path.exists(_join(dataset, ann_file)):
        raise UserError(f'annotation file {_join(dataset, ann_file)} ({loader}) does not exist')


def _check_evaluator(cfg: Config, name: str) -> None:
    evaluators = cfg.get(name) or []
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        ann_file = evaluator.get('ann_file')
        if ann_file and '://' not in ann_file and not os.path.exists(ann_file):
            raise UserError(
                f'annotation file {ann_file} ({name}) does not exist: name its place by '
                f'--cfg-options {name}.ann_file=FILE'
            )


def _check_categories(cfg: Config, loader: str, dataset: ConfigDict) -> None:
    path = _join(dataset, dataset.ann_file)
    # Lists of test images come without annotations.
    keys = ['images', 'categories'] + ['annotations'] * (loader != 'test_dataloader')
    content = _read_coco(path, keys)
    classes = _classes(cfg, dataset)
    names = [category['name'] for category in content['categories']]
    missing = [name for name in classes if name not in names]
    ignored = [name for name in names if name not in classes]
    if missing:
        raise UserError(
            f'the classes of the config are not the categories of {path}: the file lacks '
            f'{", ".join(missing)}; the config lacks {", ".join(ignored) or "none"}. Set '
            f"{loader}.dataset.metainfo.classes (and the num_classes of the heads) to the file's"
        )
    if ignored:
        print_log(
            f'{path}: {len(ignored)} categories are no classes of the config and are left out: '
            f'{", ".join(ignored)}',
            logger='current',
        )
    for key, count in _num_classes(cfg.model, 'model'):
        if count != len(classes):
            raise UserError(
                f'{key}.num_classes is {count}, but {loader}.dataset has {len(classes)} classes '
                f'({", ".join(classes[:5])}{", ..." if len(classes) > 5 else ""}): make them equal'
            )


def _read_coco(path: str, keys: list[str]) -> dict:
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f'annotation file {path} cannot be read as JSON: {error}') from error
    lacking = [key for key in keys if not isinstance(content, dict) or key not in content]
    if lacking:
        raise UserError(f'annotation file {path} is not of COCO: it has no {", ".join(lacking)}')
    return content


def _classes(cfg: Config, dataset: ConfigDict) -> tuple[str, ...]:
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            classes = registry.get(dataset.type).METAINFO['classes']
    return (classes,) if isinstance(classes, str) else tuple(classes)


def _num_classes(node: Any, key: str) -> Iterator[tuple[str, int]]:
    """The heads of a detector that predict the data set's classes."""
    if isinstance(node, list | tuple):
        for i, item in enumerate(node):
            yield from _num_classes(item, f'{key}.{i}')
    elif isinstance(node, dict):
        if 'num_classes' in node and key.rstrip('.0123456789').endswith(('bbox_head', 'mask_head')):
            yield key, node['num_classes']
        for name, item in node.items():
            yield from _num_classes(item, f'{key}.{name}')

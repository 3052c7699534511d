"""Rules between the settings of a config and a data set, and for settings of data loaders."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.dist import get_world_size
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from ...config import (
    datasets_of,
    default_scope,
    dicts_of,
    evaluators_of,
    metainfo_of,
    transforms_of,
)
from .report import Report

WORKER_KEYS = ('persistent_workers', 'prefetch_factor', 'timeout')
"""Settings of data loaders that need workers."""
# Settings that mmengine takes, and PyTorch's data loader does not see.
OF_MMENGINE = (
    'dataset',
    'sampler',
    'batch_sampler',
    'collate_fn',
    'worker_init_fn',
    'num_batch_per_epoch',
    'disable_subprocess_warning',
)
# Heads of mmseg with a norm after a pooling to one pixel, unless ``pool_scales`` has no 1.
POOLING_HEADS = ('UPerHead', 'PSPHead', 'APCHead', 'ASPPHead', 'DepthwiseSeparableASPPHead')
# Losses of mmseg that take class 0 as the only channel, and the one that needs sigmoid.
ONE_HOT_LOSSES, SOFTMAX_LOSS = ('DiceLoss', 'FocalLoss', 'TverskyLoss'), 'CrossEntropyLoss'


def check_settings(cfg: Config, loader: str, dataset: BaseDataset, report: Report) -> None:
    """Check the settings of a data loader that must fit its data set, which is not initialised."""
    classes = dataset.metainfo.get('classes') or ()
    problems = [
        *_loader_problems(cfg, loader, dataset),
        *_metainfo_problems(cfg, loader),
        *_evaluator_problems(cfg, loader.removesuffix('_dataloader'), dataset),
        *_class_weights(cfg.get('model'), len(classes)),
    ]
    if hasattr(dataset, 'reduce_zero_label'):
        problems += _map_problems(cfg, loader, dataset, len(classes))
    for what, where in problems:
        report.add('error', what, where)


def _loader_problems(cfg: Config, name: str, dataset: BaseDataset) -> Iterator[tuple[str, str]]:
    loader = cfg[name]
    for key, least in (('batch_size', 1), ('num_workers', 0)):
        value = loader.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            yield f'{key} is not a whole number from {least}', f'{name}.{key}={value!r}'
            return
    hidden = OF_MMENGINE + (() if loader.get('num_workers') else WORKER_KEYS)
    try:
        with warnings.catch_warnings(action='ignore'):
            options = {key: value for key, value in loader.items() if key not in hidden}
            DataLoader(dataset, sampler=[0], **options)
    except Exception as error:  # PyTorch raises different errors for wrong settings
        yield 'PyTorch refuses settings of a data loader', f'{name}: {error}'
        return
    pooling = [key for key, head in _heads(cfg) if _pools_to_one(head)]
    training = name == 'train_dataloader'
    fills = str((cfg.get('train_cfg') or {}).get('type')).startswith('Exact')  # the last batch too
    least, reason = smallest_batch(cfg, name, finite=bool(training and pooling and not fills))
    if not least:
        what = 'no batch is left by drop_last: lower batch_size, or set drop_last=False'
        yield what, reason
    elif least == 1 and training and pooling:
        what = f'batch norm of {pooling[0]} needs two images in each batch: it pools to one pixel'
        yield f'{what}. Set batch_size=2 and drop_last=True, or norm_cfg.type=GN', reason


def _pools_to_one(head: ConfigDict) -> bool:
    """Whether a head has a batch norm of one value for each image."""
    norm = str((head.get('norm_cfg') or {}).get('type', ''))
    # SyncBN computes the statistics of all processes together.
    alone = norm.startswith('BN') or (norm == 'SyncBN' and get_world_size() < 2)
    return alone and head.get('type') in POOLING_HEADS and 1 in head.get('pool_scales', [1])


def smallest_batch(cfg: Config, name: str, finite: bool) -> tuple[int, str]:
    """The size of the smallest batch of a data loader in a process, and its reason.

    ``finite`` looks at the last batch too, which may be smaller, and reads the number of images.
    """
    loader = cfg[name]
    size = loader.get('batch_size', 1)
    sampler, batches = loader.get('sampler') or {}, loader.get('batch_sampler') or {}
    drops = loader.get('drop_last') or batches.get('drop_last')
    if not str(sampler.get('type', '')).endswith('DefaultSampler') or not (drops or finite):
        return size, f'{name}.batch_size={size}'
    try:
        with default_scope(cfg):
            images = len(DATASETS.build(_without_pipelines(loader.dataset)))
    except Exception:  # the check of the data tells the reason
        return size, f'{name}.batch_size={size}'
    own = math.ceil(images / get_world_size())
    reason = f'{name}.batch_size={size} with {own} images for a process'
    if drops:
        return (size if images // get_world_size() >= size else 0), reason
    return own % size or size, reason


def _without_pipelines(node: Any) -> Any:
    if isinstance(node, dict):
        own = {k: _without_pipelines(v) for k, v in node.items()}
        return {**own, 'pipeline': []} if 'pipeline' in own else own
    return [_without_pipelines(item) for item in node] if isinstance(node, list) else node


def _metainfo_problems(cfg: Config, loader: str) -> Iterator[tuple[str, str]]:
    first, *others = (metainfo_of(cfg, config) for config in datasets_of(cfg[loader]))
    # mmdet joins data sets of different classes.
    for other in others if cfg.get('default_scope') != 'mmdet' else []:
        for key in ('classes', 'palette'):
            if other.get(key) != first.get(key):
                yield f'data sets of one loader have different {key}', f'{loader}.dataset'


def _evaluator_problems(cfg: Config, split: str, dataset: BaseDataset) -> Iterator[tuple[str, str]]:
    labelled = getattr(dataset, 'with_label', True)
    if not labelled and split == 'train' and cfg.model.get('type') == 'ImageClassifier':
        yield 'a classifier learns from labels: set with_label=True', f'{split}_dataloader.dataset'
    for evaluator in evaluators_of(cfg, split):
        if evaluator.get('format_only'):
            if not evaluator.get('output_dir') and not evaluator.get('outfile_prefix'):
                what = 'format_only needs a place to write to: pass --out PREFIX, or set output_dir'
                yield what, f'{split}_evaluator'
        elif not labelled:
            what = 'images without labels cannot be evaluated: set with_label=True'
            yield what, f'{split}_dataloader.dataset'


def _heads(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    """The decode heads and auxiliary heads of a segmenter."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = (cfg.get('model') or {}).get(name) or []
        for i, head in enumerate(heads if isinstance(heads, list) else [heads]):
            yield f'model.{name}[{i}]' if isinstance(heads, list) else f'model.{name}', head


def _class_weights(model: Any, classes: int) -> Iterator[tuple[str, str]]:
    """Find lists of class weights of another length than the classes; not in heads of mmseg."""
    for key, part in dicts_of(model, 'model'):
        weights = part.get('class_weight')
        # Losses of mmdet have a weight for background too.
        right = classes + (key.endswith('loss_cls') and not part.get('use_sigmoid'))
        wrong = isinstance(weights, list | tuple) and len(weights) != right
        if classes and wrong and 'loss_decode' not in key.split('.'):
            what = f'class_weight has {len(weights)} weights, but the data set {right} classes'
            yield f'{what}{", with background" * (right > classes)}', f'{key}.class_weight'


def _map_problems(
    cfg: Config, loader: str, dataset: BaseDataset, classes: int
) -> Iterator[tuple[str, str]]:
    if not classes:
        yield 'no class names: set metainfo.classes', f'{loader}.dataset'
        return
    split = loader.removesuffix('_dataloader')
    evaluators = [
        (f'{split}_evaluator', evaluator)
        for evaluator in evaluators_of(cfg, split)
        if 'IoUMetric' in str(evaluator.get('type'))
    ]
    users = list(_heads(cfg)) if split == 'train' else evaluators
    for key, user in users:
        ignored = user.get('ignore_index', 255)
        if ignored != dataset.ignore_index:
            what = 'ignore_index of data set, heads and evaluators must be equal'
            own = f'{loader}.dataset.ignore_index={dataset.ignore_index}'
            yield what, f'{key}.ignore_index={ignored}, {own}'
    if dataset.ignore_index != 255 and (dataset.reduce_zero_label or dataset.label_map):
        what = 'ignore_index must be 255 for reduce_zero_label and for a selection of classes'
        yield what, f'{loader}.dataset.ignore_index={dataset.ignore_index}'
    for config in datasets_of(cfg[loader]):
        for kind in ('LoadAnnotations', 'LoadWholeMap'):
            for step in transforms_of(config.get('pipeline', []), kind):
                given = step.get('reduce_zero_label')
                if given not in (None, dataset.reduce_zero_label):
                    what = f'reduce_zero_label={given} in {kind} alone: set it in the data set'
                    yield what, f'{loader}.dataset'
    formats = evaluators and all(evaluator.get('format_only') for _, evaluator in evaluators)
    if not dataset.data_prefix.get('seg_map_path') and not formats:
        what = 'no label maps: set data_prefix.seg_map_path'
        if split == 'test':
            what += ', or format_only=True in the evaluator to write predictions only'
        yield what, f'{loader}.dataset'
    for key, head in _heads(cfg):
        yield from _head_problems(key, head, classes)


def _head_problems(key: str, head: ConfigDict, classes: int) -> Iterator[tuple[str, str]]:
    channels, losses = head.get('out_channels') or classes, head.get('loss_decode') or []
    if channels != classes and (channels, classes) != (1, 2):
        what = f'out_channels={channels} for {classes} classes: set it to {classes}'
        yield f'{what}, or to 1 for two classes', f'{key}.out_channels'
        return
    for loss in losses if isinstance(losses, list | tuple) else [losses]:
        kind, weights, sigmoid = (loss.get(k) for k in ('type', 'class_weight', 'use_sigmoid'))
        where = f'{key}.loss_decode'
        if channels == 1 and (kind in ONE_HOT_LOSSES or (kind == SOFTMAX_LOSS and not sigmoid)):
            what = f'{kind} cannot learn one output channel: use CrossEntropyLoss, use_sigmoid=True'
            yield what, where
        elif isinstance(weights, list | tuple) and sigmoid and channels > 1:
            yield 'class_weight needs use_sigmoid=False', where
        elif isinstance(weights, list | tuple) and len(weights) != channels:
            yield f'class_weight has {len(weights)} weights: it needs {channels}', where

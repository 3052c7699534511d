"""The config file that a fit writes: its decisions, each with its reason in a comment."""

import math
import os
from collections.abc import Iterator
from typing import Any

from ..compat.config_format import format_code
from ..errors import printable
from ..formats import Dataset
from .decisions import METRICS, Decisions
from .facts import BASES, Facts

FLIPS = "prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']"
SPLITS = {'train': 'to train on', 'val': 'to validate'}
BOXES = ('detection', 'instances')


def config_text(data: Dataset, facts: Facts, made: Decisions, command: str) -> str:
    """Write a config as Python code.

    Args:
        data: The data set.
        facts: What was found out about it.
        made: All decisions.
        command: The command that wrote the config.
    """
    number = len(data.classes)
    title = f'{data.task.capitalize()}, {number} class{"es" * (number != 1)}, written by'
    advice = 'Edit this file freely, and train it by ``gcvit-mm train``.'
    head = f'"""{title} ``{in_docstring(command)}``.\n\n{advice}\n"""\n\n'
    parts = (_base, _data, _pipelines, _loaders, _model, _schedule)
    body = '\n'.join(''.join(map(_lines, part(data, facts, made))) for part in parts)
    # mmengine replaces names in double braces, also in class names.
    return (head + body).replace('{{', '{\\x7b')


def _lines(text: str) -> str:
    return f'{text}\n' if text.startswith('#') else format_code(text)


def in_docstring(command: str) -> str:
    """The command as it stands in the docstring of a config."""
    return printable(command).replace('\\', '/').replace('"', "'").replace('{{', '{ {')


def _why(name: str, made: Decisions, title: str = '') -> str:
    """A comment with a decision and its reason."""
    return printable(f'# {title or name.capitalize()} {made[name].value}: {made[name].why}.')


class Code(str):
    """Python code in a value."""

    __repr__ = str.__str__


def _code(value: Any) -> str:
    """A value as code, with dictionaries as calls; the key ** is for unpacking."""
    if isinstance(value, dict):
        items = (f'**{v}' if k == '**' else f'{k}={_code(v)}' for k, v in value.items())
        return f'dict({", ".join(items)})'
    if isinstance(value, list):
        return f'[{", ".join(map(_code, value))}]'
    return repr(value)


Lines = Iterator[str]


def _base(data: Dataset, facts: Facts, made: Decisions) -> Lines:
    model, head = made['model'].value, made['head'].value
    for name in ('model', 'head', 'weights'):
        yield _why(name, made)
    base = f'gcvit_{model}_classifier' if head == 'classifier' else f'{head}_gcvit_{model}'
    names = [f'gcvit_mm::_base_/{name}.py' for name in (base, BASES[data.task])]
    yield f'_base_ = {names}'


def _data(data: Dataset, facts: Facts, made: Decisions) -> Lines:
    counts = [
        f'{facts.images[split]} images'
        + (f' with {facts.objects[split]} objects' if split in facts.objects else '')
        + f' {purpose}'
        for split, purpose in SPLITS.items()
    ]
    yield f'# Data: {", ".join(counts)}.'
    yield f'metainfo = {_code(data.settings("train")["metainfo"])}'
    yield "num_classes = len(metainfo['classes'])"
    for split in SPLITS:
        settings = {key: value for key, value in data.settings(split).items() if key != 'data_root'}
        yield f'{split} = {_code({**settings, "metainfo": Code("metainfo")})}'


def _pipelines(data: Dataset, facts: Facts, made: Decisions) -> Lines:
    if made['tile'].value:
        yield _why('tile', made, 'The images are tiles of')
        yield f'tile = {made["tile"].value}'
    size = made['size'].value
    square = size, size
    yield _why('size', made, 'Images of')
    yield _why('flips', made)
    yield 'train_pipeline = _base_.train_pipeline'
    yield 'test_pipeline = _base_.test_pipeline'
    if data.task == 'classification':
        yield f'train_pipeline[1].scale = test_pipeline[2].crop_size = {size}'
        yield f'test_pipeline[1].scale = {size * 8 // 7}'
        flip = 2
    else:
        yield f'train_pipeline[2].scale = test_pipeline[1].scale = {square}'
        yield 'tta_pipeline = _base_.tta_pipeline'
        flip = 3
    if data.task in BOXES:
        yield f'tta_pipeline[1].transforms[0][0].scale = {square}'
    if data.task == 'segmentation':
        crop = min(512, size // 64 * 32) if size > 128 else size
        yield f'crop = train_pipeline[3].crop_size = {crop, crop}'
        sides = [int(size * ratio) for ratio in (0.75, 1.0, 1.25)]
        steps = f'zip(tta_pipeline[1].transforms[0], {sides})'
        yield f'for step, side in {steps}:\n    step.scale = side, side'
        flip = 4
    if made['flips'].value == 'all':
        yield f'train_pipeline[{flip}].update({FLIPS})'
    if facts.grey:
        yield '# The images are grey: no changes of colours.'
        yield f'del train_pipeline[{flip + 1}]'


def _loaders(data: Dataset, facts: Facts, made: Decisions) -> Lines:
    train: dict[str, Any] = {'**': 'train', 'pipeline': Code('train_pipeline')}
    yield _why('batch', made, 'Batches of')
    if made['rare'].value:
        yield f'# Images of rare classes are repeated: {made["rare"].why}.'
        train['type'] = 'CocoDataset' if data.task in BOXES else 'CustomDataset'
        train = {'dataset': train, 'oversample_thr': made['rare'].value}
        train = {'_delete_': True, 'type': 'ClassBalancedDataset', **train}
    workers = min(max((os.cpu_count() or 2) // max(facts.gpus, 1), 1), 8)
    loader = {'batch_size': made['batch'].value, 'num_workers': workers, 'dataset': train}
    yield f'train_dataloader = {_code(loader)}'
    yield 'val_dataloader = test_dataloader = dict(dataset=dict(**val, pipeline=test_pipeline))'
    if data.task in BOXES:
        yield "val_evaluator = test_evaluator = dict(ann_file=val['ann_file'])"


def _model(data: Dataset, facts: Facts, made: Decisions) -> Lines:
    number = {'num_classes': Code('num_classes')}
    head, weights = made['head'].value, made['weights'].value
    model: dict[str, Any] = {} if weights == 'imagenet' else {'backbone': {'init_cfg': None}}
    if head in ('mask_rcnn', 'faster_rcnn'):
        yield _why('anchors', made, 'Anchors from')
        scale = made['anchors'].value / 4
        model['rpn_head'] = {'anchor_generator': {'scales': [scale]}}
        # An object as large as the second smallest anchor goes to the second feature map.
        finest = {'finest_scale': 7 * scale}
        model['roi_head'] = {'bbox_roi_extractor': finest, 'bbox_head': number}
        if head == 'mask_rcnn':
            model['roi_head'] |= {'mask_roi_extractor': finest, 'mask_head': number}
    elif head == 'upernet':
        model['data_preprocessor'] = {'size': Code('crop')}
        model |= {'decode_head': number, 'auxiliary_head': number}
    else:
        model['bbox_head' if head == 'retinanet' else 'head'] = number
    yield f'model = {_code(model)}'
    if weights not in ('scratch', 'imagenet'):
        yield f'load_from = {weights!r}'
    if head == 'classifier':
        yield f'data_preprocessor = {_code(number)}'


def _schedule(data: Dataset, facts: Facts, made: Decisions) -> Lines:
    epochs, rate, metric = made['epochs'].value, made['lr'].value, METRICS[data.task]
    interval = math.ceil(epochs / 15)
    linear = dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=made['warmup'].value)
    cosine = dict(type='CosineAnnealingLR', eta_min=rate / 100, T_max=epochs)
    ema = dict(type='EMAHook', momentum=made['ema'].value)
    stop = dict(type='EarlyStoppingHook', monitor=metric, patience=made['patience'].value)
    yield _why('lr', made, 'Learning rate')
    yield f'optim_wrapper = dict(optimizer=dict(lr={rate}))'
    yield f'auto_scale_lr = dict(base_batch_size={made["batch"].value * max(facts.gpus, 1)})'
    yield _why('epochs', made)
    yield f'train_cfg = dict(max_epochs={epochs}, val_interval={interval})'
    yield f'param_scheduler = {_code([linear, dict(cosine, convert_to_iter_based=True)])}'
    yield _why('ema', made, 'Moving average of the weights with')
    yield _why('patience', made)
    yield f'custom_hooks = {_code([ema, stop])}'
    hooks = dict(
        checkpoint=dict(interval=interval, save_best=metric),
        logger=dict(interval=made['log'].value),
    )
    yield f'default_hooks = {_code(hooks)}'

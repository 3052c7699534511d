"""The config file that a fit writes: its decisions, each with its reason in a comment."""

import math
import pprint
from textwrap import fill
from typing import Any

from ..formats import Dataset
from .decisions import METRICS, Decisions
from .facts import BASES, Facts

ALL_FLIPS = {'prob': [0.25, 0.25, 0.25], 'direction': ['horizontal', 'vertical', 'diagonal']}
WIDTH = 100


def config_text(data: Dataset, facts: Facts, made: Decisions, command: str) -> str:
    """Write a config as Python code.

    Args:
        data: The data set.
        facts: What was found out about it.
        made: All decisions.
        command: The command that wrote the config.
    """
    parts = [
        _head(data, facts, command),
        _base(data, made),
        _data(data, facts),
        _pipelines(data, facts, made),
        _loaders(data, made),
        _model(data, made),
        _schedule(data, facts, made),
    ]
    return '\n'.join(parts)


def _head(data: Dataset, facts: Facts, command: str) -> str:
    count = len(data.classes)
    title = f'{data.task.capitalize()} of {count} class{"es" * (count != 1)}: {data.root}.'
    return (
        f'"""{title}\n\nWritten by ``{command}``.\nEdit it freely, and train again with '
        'gcvit-mm train and this file.\n"""\n'
    )


def _because(name: str, made: Decisions, what: Any = None) -> str:
    """A comment that says what was decided, and why."""
    decision = made[name]
    value = decision.value if what is None else what
    text = f'{name.replace("_", " ").capitalize()}: {value}; {decision.why}.'
    return fill(text, WIDTH, initial_indent='# ', subsequent_indent='# ') + '\n'


def _assign(name: str, value: Any) -> str:
    """An assignment, with one entry of a long value on a line."""
    line = f'{name} = {_code(value)}\n'
    if len(line) <= WIDTH or not isinstance(value, dict):
        long = pprint.pformat(value, width=WIDTH - 4, compact=True, sort_dicts=False)
        return line if len(line) <= WIDTH else f'{name} = {long}\n'
    rows = ''.join(f'    {key}={_code(item)},\n' for key, item in value.items())
    return f'{name} = dict(\n{rows})\n'


class Code(str):
    """Python code in a value."""


def _code(value: Any) -> str:
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, dict):
        inner = ', '.join(
            str(item) if key == '**' else f'{key}={_code(item)}' for key, item in value.items()
        )
        return f'dict({inner})'
    if isinstance(value, list):
        return f'[{", ".join(map(_code, value))}]'
    return repr(value)


def _base(data: Dataset, made: Decisions) -> str:
    model, head = made['model'].value, made['head'].value
    base = f'gcvit_{model}_classifier' if head == 'classifier' else f'{head}_gcvit_{model}'
    bases = [f'gcvit_mm::_base_/{name}.py' for name in (base, BASES[data.task])]
    return (_because('model', made) + _because('weights', made) + _because('head', made)) + _assign(
        '_base_', bases
    )


def _data(data: Dataset, facts: Facts) -> str:
    counts = ', '.join(
        f'{count} images'
        + (f' with {facts.objects[split]} objects' if split in facts.objects else '')
        + f' to {"train" if split == "train" else "validate"}'
        for split, count in facts.images.items()
    )
    lines = [f'# Data: {counts}.\n', _assign('metainfo', _metainfo(data))]
    for split in ('train', 'val'):
        settings = {k: v for k, v in data.settings(split).items() if v != ''}
        lines.append(_assign(split, {**settings, 'metainfo': Code('metainfo')}))
    return ''.join(lines)


def _metainfo(data: Dataset) -> dict:
    return dict(data.settings('train')['metainfo'])


def _pipelines(data: Dataset, facts: Facts, made: Decisions) -> str:
    size, flips = made['size'].value, made['flips'].value
    lines = [_because('size', made), _because('flips', made)]
    lines += ['train_pipeline = _base_.train_pipeline\n', 'test_pipeline = _base_.test_pipeline\n']
    if data.task == 'classification':
        lines.append(f'train_pipeline[1].scale = test_pipeline[2].crop_size = {size}\n')
        lines.append(f'test_pipeline[1].scale = {size * 8 // 7}\n')
        return ''.join(lines)
    square = f'({size}, {size})'
    flip = 4 if data.task == 'segmentation' else 3
    lines.append(f'train_pipeline[2].scale = test_pipeline[1].scale = {square}\n')
    if data.task == 'segmentation':
        crop = _crop(size)
        lines.append(f'crop = train_pipeline[3].crop_size = ({crop}, {crop})\n')
    if flips == 'all':
        given = ', '.join(f'{key}={value!r}' for key, value in ALL_FLIPS.items())
        lines.append(f'train_pipeline[{flip}].update({given})\n')
    if facts.grey:
        lines.append('# Grey images have no colours to change.\n')
        lines.append(f'del train_pipeline[{flip + 1}]\n')
    lines.append('tta_pipeline = _base_.tta_pipeline\n')
    if data.task == 'segmentation':
        lines.append(
            'tta_pipeline[1].transforms[0] = [\n'
            "    dict(type='Resize', scale=(side, side), keep_ratio=True)\n"
            f'    for side in {tuple(int(size * ratio) for ratio in (0.75, 1.0, 1.25))}\n]\n'
        )
    else:
        lines.append(f'tta_pipeline[1].transforms[0][0].scale = {square}\n')
    return ''.join(lines)


def _crop(size: int) -> int:
    return min(512, max(64, size // 2 // 32 * 32)) if size > 128 else size


def _loaders(data: Dataset, made: Decisions) -> str:
    train: dict[str, Any] = {'**': '**train', 'pipeline': Code('train_pipeline')}
    lines = [_because('batch', made)]
    if made['rare'].value:
        kind = 'CocoDataset' if data.task != 'classification' else 'CustomDataset'
        train = {
            '_delete_': True,
            'type': 'ClassBalancedDataset',
            'oversample_thr': made['rare'].value,
            'dataset': {'type': kind, **train},
        }
        lines.append(_because('rare', made, 'repeated'))
    batch = made['batch'].value
    lines.append(_assign('train_dataloader', {'batch_size': batch, 'dataset': train}))
    lines.append('val_dataloader = dict(dataset=dict(**val, pipeline=test_pipeline))\n')
    lines.append('test_dataloader = val_dataloader\n')
    if data.task in ('detection', 'instances'):
        lines.append(_assign('val_evaluator', {'ann_file': Code("val['ann_file']")}))
        lines.append('test_evaluator = val_evaluator\n')
    return ''.join(lines)


def _model(data: Dataset, made: Decisions) -> str:
    number = {'num_classes': Code("len(metainfo['classes'])")}
    head, weights, lines = made['head'].value, made['weights'].value, []
    model: dict[str, Any] = {}
    if weights == 'scratch':
        model['backbone'] = {'init_cfg': None}
    if head in ('mask_rcnn', 'faster_rcnn'):
        lines.append(_because('anchors', made, f'from {made["anchors"].value} pixels'))
        scale = made['anchors'].value // 4
        model['rpn_head'] = {'anchor_generator': {'scales': [scale]}}
        # An object as large as the second smallest anchor goes to the second feature map.
        finest = {'finest_scale': 7 * scale}
        model['roi_head'] = {'bbox_roi_extractor': finest, 'bbox_head': number}
        if head == 'mask_rcnn':
            model['roi_head'] |= {'mask_roi_extractor': finest, 'mask_head': number}
    elif head == 'retinanet':
        model['bbox_head'] = number
    elif head == 'upernet':
        model |= {'data_preprocessor': {'size': Code('crop')}}
        model |= {'decode_head': number, 'auxiliary_head': number}
    else:
        model['head'] = number
    lines.append(_assign('model', model))
    if weights not in ('scratch', 'imagenet'):
        lines.append(_assign('load_from', weights))
    if head == 'classifier':
        lines.append(_assign('data_preprocessor', number))
    return ''.join(lines)


def _schedule(data: Dataset, facts: Facts, made: Decisions) -> str:
    epochs, warmup = made['epochs'].value, made['warmup'].value
    metric = METRICS[data.task]
    interval = math.ceil(epochs / 15)
    cosine = {'type': 'CosineAnnealingLR', 'eta_min': made['lr'].value / 100, 'T_max': epochs}
    linear = {'type': 'LinearLR', 'start_factor': 0.01, 'by_epoch': False, 'end': warmup}
    hooks = [
        {'type': 'EMAHook', 'momentum': made['ema'].value},
        {'type': 'EarlyStoppingHook', 'monitor': metric, 'patience': made['patience'].value},
    ]
    return ''.join(
        [
            _because('lr', made).replace('# Lr', '# Learning rate'),
            _assign('optim_wrapper', {'optimizer': {'lr': made['lr'].value}}),
            _because('epochs', made),
            _assign('train_cfg', {'max_epochs': epochs, 'val_interval': interval}),
            'param_scheduler = [\n',
            f'    {_code(linear)},\n',
            f'    {_code({**cosine, "convert_to_iter_based": True})},\n]\n',
            _because('ema', made).replace('# Ema', '# Moving average of the weights'),
            _because('patience', made),
            f'custom_hooks = [\n    {_code(hooks[0])},\n    {_code(hooks[1])},\n]\n',
            _assign(
                'default_hooks',
                {
                    'checkpoint': {'interval': interval, 'save_best': metric},
                    'logger': {'interval': made['log'].value},
                },
            ),
            _assign('auto_scale_lr', {'base_batch_size': made['batch'].value * max(facts.gpus, 1)}),
        ]
    )

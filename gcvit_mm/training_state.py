"""The state of a run in a checkpoint, which is checked before a run resumes from it."""

import math
import re
from collections.abc import Iterator
from reprlib import repr as brief
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .errors import UserError, printable

Check = tuple[str, Any, bool]
"""Name of an entry, its value, and whether a run can use it."""
COUNTS = ('epoch', 'iter', 'max_epochs', 'max_iters', 'data_passes', 'data_samples')
HUB = ('log_scalars', 'runtime_info', 'resumed_keys')
ARRAYS = ('_log_history', '_count_history')
RATES = r'((initial|max|min|base)_)?(lr|momentum|weight_decay|dampening)'
"""Settings of optimizers that are numbers from 0."""
SHAPED = re.compile(r'(max_)?exp_avg(_sq)?|momentum_buffer')
"""Tensors of optimizers that have the shape of the parameter."""


def check_training_state(content: Any) -> None:
    """Check types, ranges and names of everything in a checkpoint that a run acts upon.

    Args:
        content: The result of ``read_checkpoint``. Of lazily read tensors only the shapes are
            checked, of others also that they have no NaN or Inf.

    Raises:
        UserError: A run cannot resume from the checkpoint; the message has no file name.
    """
    if not isinstance(content, dict) or 'message_hub' not in content:
        raise UserError(
            'it has weights only and cannot be resumed: start a new training from it with '
            '--cfg-options load_from=FILE'
        )
    for name, value, fits in _checks(content):
        if not fits:
            shown = 'NaN, Inf or a wrong shape' if isinstance(value, Tensor) else brief(value)
            raise UserError(
                f'{name} is {shown}, with which no training can go on: resume from another '
                'checkpoint'
            )


def _checks(content: Any) -> Iterator[Check]:
    meta, hub = (content.get(key) for key in ('meta', 'message_hub'))
    optimizer = content.get('optimizer', {'param_groups': []})
    yield 'meta', meta, type(meta) is dict
    for key in ('epoch', 'iter'):
        yield f'meta.{key}', meta.get(key), _is_count(meta.get(key))
    seed = meta.get('seed')
    yield 'meta.seed', seed, seed is None or (_is_count(seed) and seed < 2**32)
    yield 'message_hub', hub, isinstance(hub, dict)
    for key in HUB:
        yield f'message_hub.{key}', hub.get(key), isinstance(hub.get(key), dict)
    for key, value in hub['log_scalars'].items():
        named = isinstance(key, str) and key == printable(key)
        whole = isinstance(value, HistoryBuffer) and {*ARRAYS} <= vars(value).keys()
        yield f'message_hub.log_scalars.{key}', value, named and whole
    for key, value in hub['runtime_info'].items():
        yield f'message_hub.runtime_info.{key}', value, _is_info(str(key), value)
    yield from _of_weights(content)
    yield from _of_optimizer('optimizer', optimizer)
    # mmengine schedules the base settings too, as a further group.
    groups = optimizer.get('param_groups')
    groups = groups and len(groups) + bool(optimizer.get('base_param_settings'))
    states = content.get('param_schedulers', [])
    yield 'param_schedulers', states, isinstance(states, list | dict)
    for key, listed in states.items() if isinstance(states, dict) else [('', states)]:
        yield f'param_schedulers.{key}', listed, isinstance(listed, list)
        for number, state in enumerate(listed):
            yield from _of_scheduler(f'param_schedulers.{key or number}', state, groups)


def _is_info(key: str, value: Any) -> bool:
    if key in COUNTS or key.startswith('validated'):
        return _is_count(value)
    if key.startswith('best_score'):
        return _is_number(value)
    return not key.startswith('best_ckpt') or isinstance(value, str)


def _of_weights(content: Any) -> Iterator[Check]:
    weights, average = content.get('state_dict'), content.get('ema_state_dict', {})
    for name, entry in dict(state_dict=weights, ema_state_dict=average).items():
        yield name, entry, isinstance(entry, dict)
        for key, value in entry.items():
            like = weights.get(str(key).removeprefix('module.')) if entry is average else value
            shaped = not isinstance(like, Tensor) or getattr(value, 'shape', None) == like.shape
            yield f'{name}.{key}', value, _is_finite(value) and shaped


def _of_optimizer(name: str, state: Any) -> Iterator[Check]:
    yield name, state, isinstance(state, dict) and len(state) > 0
    if 'param_groups' not in state:  # several optimizers by name
        for key, inner in state.items():
            yield from _of_optimizer(f'{name}.{key}', inner)
        return
    groups, entries, scale = (
        state.get(key, {}) for key in ('param_groups', 'state', 'loss_scaler')
    )
    yield f'{name}.param_groups', groups, isinstance(groups, list)
    places = {f'param_groups.{number}': group for number, group in enumerate(groups)}
    base = {key: state[key] for key in ('base_param_settings',) if state.get(key)}
    for key, group in {**places, **base}.items():
        place = f'{name}.{key}'
        yield place, group, isinstance(group, dict) and 'params' in group
        for setting, value in group.items():
            yield f'{place}.{setting}', value, _is_setting(str(setting), value)
    known = {number for group in groups for number in group['params']}
    yield f'{name}.state', entries, isinstance(entries, dict) and entries.keys() <= known
    for number, entry in entries.items():
        yield f'{name}.state.{number}', entry, isinstance(entry, dict)
        for key, value in entry.items():
            tensor = isinstance(value, Tensor) and _is_finite(value)
            fits = _is_number(value, 0) if key == 'step' else tensor or _is_plain(value)
            yield f'{name}.state.{number}.{key}', value, fits
    yield f'{name}.loss_scaler', scale, isinstance(scale, dict)
    for key, value in scale.items():
        positive = _is_number(value, 0) and (value > 0 or key == '_growth_tracker')
        yield f'{name}.loss_scaler.{key}', value, positive


def _of_scheduler(name: str, state: Any, groups: int | None) -> Iterator[Check]:
    yield name, state, isinstance(state, dict)
    for key, value in state.items():
        if key in ('last_step', '_global_step'):
            fits = type(value) is int and value >= -1
        elif key in ('base_values', '_last_value'):
            counted = isinstance(value, list) and len(value) == (groups or len(value))
            fits = counted and all(map(_is_number, value))
        else:
            fits = _is_plain(value)
        yield f'{name}.{key}', value, fits


def _is_setting(key: str, value: Any) -> bool:
    if key == 'params':  # those of the base settings are a tensor
        return isinstance(value, Tensor) or (isinstance(value, list) and all(map(_is_count, value)))
    if key == 'betas':
        pair = isinstance(value, tuple | list) and len(value) == 2
        return pair and all(_is_number(beta, 0) and beta < 1 for beta in value)
    return _is_number(value, 0) if re.fullmatch(RATES, key) else _is_plain(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any, least: float = -math.inf) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and (value.is_meta or _is_number(value.item(), least))
    number = isinstance(value, int | float | np.number) and type(value) is not bool
    return number and math.isfinite(value) and value >= least


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    known = value is None or isinstance(value, str | bool | int | float | np.generic)
    return known and value == value  # not NaN


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or not value.is_floating_point():
        return True
    return bool(value.isfinite().all())

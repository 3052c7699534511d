"""Checkpoints whose state no training could have: refused with the name of the entry."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import ROOT, fail, succeed
from mmengine.logging import HistoryBuffer

from gcvit_mm.errors import UserError
from gcvit_mm.weights.files import read_checkpoint
from gcvit_mm.work_dir import check_resumable, find_resumable

OLD = ROOT / 'tests/golden/old_work_dir'
ODD_COUNTS = [-1, 2**70, 1.5, math.nan, '7', True, [1], None]
INFO, LOGS = 'message_hub.runtime_info', 'message_hub.log_scalars'
GROUP, ENTRY, SCHEDULE = 'optimizer.param_groups.0', 'optimizer.state.0', 'param_schedulers.0'
ODD: dict[str, list[Any]] = {
    'meta': [None, []],
    'meta.iter': ODD_COUNTS,
    'meta.epoch': ODD_COUNTS,
    'meta.seed': [-1, 2**32, 'x', 0.5],
    'message_hub': [None, []],
    LOGS: [None, []],
    f'{LOGS}.train/loss': [3, [], HistoryBuffer.__new__(HistoryBuffer)],
    f'{LOGS}.train/\x1b]0;owned\x07': [HistoryBuffer()],
    INFO: [None, 7],
    **{f'{INFO}.{key}': ODD_COUNTS[:-1] for key in ('iter', 'data_passes', 'data_samples')},
    f'{INFO}.validated_iter': ['x', -3],
    f'{INFO}.best_score': [math.nan, 'high', [1], np.float64(math.inf)],
    f'{INFO}.best_ckpt': [3, ['x.pth']],
    'message_hub.resumed_keys': [None, []],
    'state_dict': [[], 'x'],
    'ema_state_dict': [5, {'module.backbone.stem.conv.weight': torch.zeros(3)}],
    'optimizer': [7, [], None, {}, {'param_groups': {}}],
    GROUP: [None, [], {}],
    f'{GROUP}.lr': [math.nan, math.inf, -1.0, 'x', None, [0.1], True],
    f'{GROUP}.initial_lr': [math.nan],
    f'{GROUP}.weight_decay': [-0.1, 'x'],
    f'{GROUP}.betas': [0.9, (0.9,), (0.9, 1.5), (0.9, math.nan), 'ab'],
    f'{GROUP}.params': [None, 'x', [-1], ['a'], [0.5]],
    f'{GROUP}.extra': [math.nan, HistoryBuffer.mean, HistoryBuffer()],
    'optimizer.base_param_settings.lr': ['x', math.nan],
    'optimizer.state': [None, [], {10**6: {}}, {'a': {}}],
    ENTRY: [None, 3],
    f'{ENTRY}.step': [-1, math.nan, torch.tensor(-1.0), torch.tensor(math.nan), 'x'],
    f'{ENTRY}.exp_avg': [torch.tensor([math.inf]), HistoryBuffer()],
    'optimizer.loss_scaler': [{'scale': 0.0}, {'scale': math.nan}, {'scale': 'x'}, 3],
    'param_schedulers': [3, None, 'x', [3], {'a': 3}],
    f'{SCHEDULE}.last_step': [1.5, 'x', -2, None],
    f'{SCHEDULE}._global_step': [True, math.nan],
    f'{SCHEDULE}.base_values': [[], ['x'] * 4, [math.nan] * 4, 0.1, None],
    f'{SCHEDULE}._last_value': [[], 'x'],
    f'{SCHEDULE}.step': [HistoryBuffer.mean, math.nan],
}


@pytest.fixture(scope='module')
def whole() -> dict:
    return read_checkpoint(OLD / 'iter_3.pth')


@pytest.fixture(scope='module')
def small(whole) -> dict:
    """A checkpoint with few tensors, which is written and read fast."""
    state = {key: whole['optimizer']['state'][key] for key in (0, 1)}
    names = 'backbone.stem.conv.weight', 'backbone.stem.conv.bias'
    weights = {name: whole['state_dict'][name] for name in names}
    return {**whole, 'state_dict': weights, 'optimizer': {**whole['optimizer'], 'state': state}}


def changed(content: dict, name: str, value: Any, path: Path) -> Path:
    """Write a checkpoint with another value at a name such as 'meta.iter'."""
    content = copy.deepcopy(content)
    node, keys = content, name.split('.')
    if name.startswith('message_hub'):
        keys = name.split('.', 2)
    for key in keys[:-1]:
        node = node[int(key) if key.isdigit() else key]
    node[int(keys[-1]) if keys[-1].isdigit() else keys[-1]] = value
    torch.save(content, path)
    return path


@pytest.mark.parametrize('name', ODD)
def test_values_that_no_training_writes_are_refused_by_name(name, small, tmp_path):
    changed(small, 'meta.epoch', 0, tmp_path / 'older.pth')
    for value in ODD[name]:
        file = changed(small, name, value, tmp_path / 'x.pth')
        with pytest.raises(UserError) as refusal:
            check_resumable(file)
        message = str(refusal.value)
        assert str(file) in message and name in message, value
        assert 'resume from another checkpoint' in message
        assert len(message) < 400
        found, (reason,) = find_resumable(tmp_path)
        assert found == str(tmp_path / 'older.pth')
        assert str(file) in reason and name in reason, value


def test_what_trainings_write_is_accepted(small, tmp_path):
    content = copy.deepcopy(small)
    content['optimizer']['loss_scaler'] = dict(
        scale=65536.0, growth_interval=2000, _growth_tracker=0
    )
    content['ema_state_dict'] = {f'module.{k}': v for k, v in small['state_dict'].items()}
    content['ema_state_dict']['steps'] = torch.tensor(3)
    content['message_hub']['runtime_info'].update(best_score=-1.5, best_ckpt='best_x_iter_3.pth')
    plateau = dict(small['param_schedulers'][0], best=math.inf, monitor='loss', rule='less')
    content['param_schedulers'].append(plateau)
    optimizer = content['optimizer']
    for group in optimizer['param_groups']:
        group.update(
            lr=torch.tensor(0.1), eps=(None, 0.1), foreach=None, nesterov=True, param_names=['a']
        )
    for file, saved in {'one.pth': optimizer, 'two.pth': dict(a=optimizer, b=optimizer)}.items():
        torch.save({**content, 'optimizer': saved}, tmp_path / file)
        check_resumable(tmp_path / file)


def resume(tiny_shapes: Path, work_dir: Path, file: Path) -> tuple[object, ...]:
    (config,) = OLD.glob('*.py')
    roots = [
        f'{name}_dataloader.dataset.data_root={tiny_shapes}' for name in ('train', 'val', 'test')
    ]
    arguments = ('--work-dir', work_dir, '--resume', file, '--cfg-options', *roots)
    return ('train.py', config, *arguments)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        (f'{INFO}.data_samples', math.nan),
        (f'{ENTRY}.exp_avg', torch.zeros(3)),
        pytest.param('optimizer.param_groups.0.params', [0], marks=pytest.mark.slow),
        pytest.param('optimizer.param_groups.0.eps', 'x', marks=pytest.mark.slow),
    ],
)
def test_a_training_does_not_start_from_them(name, value, whole, tiny_shapes, tmp_path):
    file = changed(whole, name, value, tmp_path / 'x.pth')
    error = fail(*resume(tiny_shapes, tmp_path / 'work', file))
    assert 'checkpoint' in error and 'resume ' in error
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_attributes_that_a_schedule_does_not_have_are_not_set(whole, tiny_shapes, tmp_path):
    file = changed(whole, f'{SCHEDULE}.step', 3, tmp_path / 'x.pth')
    output = succeed(*resume(tiny_shapes, tmp_path / 'work', file))
    assert 'the schedule of the config is used' in output
    assert (tmp_path / 'work/iter_6.pth').is_file()

"""Schedules of another length than the training, and what resuming does with the config."""

import logging

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from gcvit_mm.engine import (
    ExactEpochBasedTrainLoop,
    ExactIterBasedTrainLoop,
    RunSummaryHook,
    SafeCheckpointHook,
)
from gcvit_mm.errors import UserError

IMAGES = 6


class Line(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, *inputs: int, mode: str) -> dict:
        return dict(loss=self.layer.weight.square().sum())


class Rates(Hook):
    """Notes the learning rate of each step."""

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.rates: list[float] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.rates.append(runner.optim_wrapper.param_groups[0]['lr'])


def train(folder, schedule, loop=None, resume=None, batch=1, lr=0.1, **optim):
    """Train a line; give the learning rates of its steps and its log."""
    given = schedule if isinstance(schedule, list) else [schedule]
    noted = Rates()
    lines: list[str] = []
    settings = dict(
        train_dataloader=dict(
            dataset=list(range(IMAGES)), sampler=dict(type='DefaultSampler'), batch_size=batch
        ),
        train_cfg=loop or dict(type=ExactEpochBasedTrainLoop, max_epochs=4),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr, **optim)),
        param_scheduler=given,
    )
    runner = Runner(
        Line(),
        str(folder),
        **settings,
        default_hooks=dict(checkpoint=dict(type=SafeCheckpointHook, interval=1)),
        custom_hooks=[dict(type=RunSummaryHook), noted],
        resume=bool(resume),
        load_from=resume and str(resume),
        experiment_name=f'{folder.name}-{len(list(folder.iterdir()))}-{id(noted)}',
        cfg=settings,
    )
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    return noted.rates, '\n'.join(lines)


def cosine(epochs, **more):
    return dict(type='CosineAnnealingLR', T_max=epochs, **more)


def epochs(count):
    return dict(type=ExactEpochBasedTrainLoop, max_epochs=count)


def iterations(count):
    return dict(type=ExactIterBasedTrainLoop, max_iters=count)


@pytest.mark.parametrize(
    ('schedule', 'loop', 'facts'),
    [
        (cosine(2), epochs(4), ['after 2 epochs', '4 epochs', 'param_scheduler.0.T_max to 4']),
        (cosine(2, convert_to_iter_based=True), epochs(4), ['after 2 epochs', 'T_max to 4']),
        (cosine(9, by_epoch=False), epochs(4), ['after 9 iterations', 'T_max to 24']),
        (cosine(9, by_epoch=False), iterations(20), ['rises again', 'T_max to 20']),
        (
            [dict(type='LinearLR', end=1, start_factor=0.1), cosine(1, begin=1)],
            epochs(4),
            ['param_scheduler.1', 'T_max to 3'],
        ),
        (dict(type='OneCycleLR', eta_max=1.0, total_steps=2), epochs(4), ['total_steps to 4']),
        (cosine(4), iterations(20), ['counts epochs', 'by_epoch=False']),
    ],
)
def test_a_schedule_that_would_raise_the_rate_again_is_refused(schedule, loop, facts, tmp_path):
    with pytest.raises(UserError) as error:
        train(tmp_path, schedule, loop)
    assert all(fact in str(error.value) for fact in facts), error.value
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize(
    ('schedule', 'loop', 'warning'),
    [
        (cosine(4), epochs(4), ''),
        (cosine(3), epochs(4), ''),  # the last epoch has the lowest rate
        (cosine(4, convert_to_iter_based=True), epochs(4), ''),
        (cosine(None), epochs(4), ''),
        (
            dict(type='CosineRestartLR', periods=[2, 2], restart_weights=[1, 1], eta_min=0),
            epochs(4),
            '',
        ),
        (dict(type='MultiStepLR', milestones=[1, 3]), epochs(4), ''),
        (dict(type='LinearLR', end=2, start_factor=0.1), epochs(4), ''),
        (dict(type='PolyLR', by_epoch=False, end=20), iterations(20), ''),
        (
            [
                cosine(3, end=3, convert_to_iter_based=True),
                dict(type='ConstantLR', begin=3, end=4, factor=1),
            ],
            epochs(4),
            '',
        ),
        (dict(type='PolyLR', end=2), epochs(4), 'ends after 2 epochs, then the rate is constant'),
        (cosine(2, end=2), epochs(4), 'ends after 2 epochs, then the rate is constant'),
        (dict(type='CosineRestartLR', periods=[2], eta_min=0), epochs(4), 'ends after 2 epochs'),
        (cosine(9), epochs(4), 'until 9 epochs, and the training has 4 epochs'),
        (dict(type='PolyLR', by_epoch=False, end=30), iterations(20), 'until 30 iterations'),
        (
            dict(type='LinearLR', by_epoch=False, end=50, start_factor=0.1),
            epochs(4),
            'changes the rate until 50 iterations, and the training has 24 iterations',
        ),
        (dict(type='MultiStepLR', milestones=[3, 8, 11]), epochs(4), 'milestones at 8, 11 epochs'),
        (cosine(9, begin=5, end=9), epochs(4), 'has no effect'),
    ],
)
def test_a_schedule_of_another_length_is_a_warning(schedule, loop, warning, tmp_path):
    _, log = train(tmp_path, schedule, loop)
    assert ('param_scheduler.0' in log.split('checkpoints and logs')[1]) == bool(warning)
    assert warning in log


def test_a_resumed_training_has_the_rate_of_the_checkpoint_and_the_schedule_of_the_config(tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    first.mkdir()
    second.mkdir()
    whole, _ = train(second, cosine(8, convert_to_iter_based=True), epochs(8))
    train(first, cosine(4, convert_to_iter_based=True), epochs(4))
    with pytest.raises(UserError, match=r'T_max to 8'):  # it is the cure
        train(first, cosine(4, convert_to_iter_based=True), epochs(8), first / 'epoch_4.pth')
    rates, log = train(
        first, cosine(8, convert_to_iter_based=True), epochs(8), first / 'epoch_4.pth', lr=3.0
    )
    assert rates == pytest.approx(whole[4 * IMAGES :])
    assert 'learning rate: 0.1\n' in log
    assert "lr 0.1 of the checkpoint is used, the config's 3 is not" in log
    assert 'the schedule of the config is used' in log


def test_a_resumed_training_with_another_batch_is_at_the_same_place_of_its_schedule(tmp_path):
    schedule = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
        cosine(4, convert_to_iter_based=True),
        dict(type='MultiStepLR', milestones=[3]),
    ]
    whole, _ = train(tmp_path, schedule)
    rates, _ = train(tmp_path, schedule, resume=tmp_path / 'epoch_2.pth', batch=2)
    assert len(rates) == IMAGES  # two epochs of three steps
    assert rates[::3] == pytest.approx(whole[2 * IMAGES :: IMAGES], rel=0.02)


@pytest.mark.parametrize('saved', ['epoch_1.pth', 'epoch_3.pth'])
def test_an_unchanged_config_resumes_with_the_same_rates_and_says_nothing(saved, tmp_path):
    schedule = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=10),
        cosine(4, convert_to_iter_based=True, eta_min=1e-3),
    ]
    whole, _ = train(tmp_path, schedule)
    rates, log = train(tmp_path, schedule, resume=tmp_path / saved)
    assert rates == whole[len(whole) - len(rates) :]
    assert 'of the checkpoint' not in log and 'schedule of the config' not in log


def test_other_options_that_have_no_effect_and_a_finished_training_are_said(tmp_path):
    train(tmp_path, cosine(4), weight_decay=0.1)
    rates, log = train(tmp_path, cosine(4), resume=tmp_path / 'epoch_4.pth', weight_decay=0.2)
    assert not rates
    assert "weight_decay 0.1 of the checkpoint is used, the config's 0.2 is not" in log
    assert 'nothing is left to train after 4 epochs: raise train_cfg.max_epochs' in log

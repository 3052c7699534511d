"""Trainings in which something goes wrong: what they say, and what becomes of them."""

import re
from pathlib import Path

import pytest
import torch
from command_line import NANO, ROOT, fail, on, succeed
from test_preemption import AVERAGE, Normed, train

from gcvit_mm.engine import GuardedOptimWrapper
from gcvit_mm.weights.files import read_checkpoint


def config(folder: Path, base: str, *lines: str) -> Path:
    """A config with a fault."""
    path = folder / 'faulty.py'
    imports = ['faults', 'gcvit_mm', 'gcvit_mm.datasets', 'gcvit_mm.engine', 'gcvit_mm.evaluation']
    text = [f'_base_ = {str(ROOT / base)!r}', f'custom_imports = dict(imports={imports})', *lines]
    path.write_text('\n'.join(text))
    return path


def short(data: Path, *options: str) -> list[str]:
    """Four steps an epoch, each in the log, and no evaluation."""
    each = ['train_dataloader.batch_size=2', 'default_hooks.logger.interval=1']
    return on(data, *each, 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None', *options)


def assert_finite(checkpoint: Path) -> None:
    state = read_checkpoint(checkpoint)['state_dict']
    assert [name for name, tensor in state.items() if not tensor.isfinite().all()] == []


# --- Steps with NaN or Inf --------------------------------------------------------------------


def test_a_step_with_a_nan_loss_is_skipped_and_its_images_are_listed(tiny_shapes, tmp_path):
    faulty = config(tmp_path, NANO, "custom_hooks = [dict(type='NanImages', iterations=[1])]")
    output = succeed('train.py', faulty, '--work-dir', tmp_path / 'work', *short(tiny_shapes))
    (line,) = [line for line in output.splitlines() if 'is skipped' in line]
    assert 'loss of iteration 2' in line and '1 in a row' in line
    assert line.count(str(tiny_shapes / 'images/training/')) == 2
    assert '1 steps were skipped' in output
    assert_finite(tmp_path / 'work/epoch_1.pth')


@pytest.mark.parametrize('accumulated', [1, 3])
def test_statistics_of_batch_normalisation_survive_a_nan(accumulated, tiny_shapes, tmp_path):
    base = 'configs/upernet_gcvit_nano_shapes.py'
    fault = "custom_hooks = [dict(type='NanImages', iterations=[1])]"
    faulty = config(
        tmp_path, base, fault, f'optim_wrapper = dict(accumulative_counts={accumulated})'
    )
    options = [
        f'train_dataloader.dataset.data_root={tiny_shapes}',
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=3',
        'val_cfg=None',
        'val_dataloader=None',
        'val_evaluator=None',
    ]
    work = tmp_path / 'work'
    output = succeed('train.py', faulty, '--work-dir', work, '--cfg-options', *options)
    assert 'the step is skipped' in output
    assert_finite(work / 'iter_3.pth')


@pytest.mark.parametrize('accumulated', [1, 2])
def test_an_average_of_statistics_keeps_no_nan_of_a_skipped_step(accumulated, tmp_path):
    """The average is updated after each batch, also when no step is complete."""
    optim = dict(type='GuardedOptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    data = [1.0, float('nan'), 2.0, 3.0]
    for at in range(len(data)):  # first and second in a step
        (tmp_path / str(at)).mkdir()
        order = dict(type='DefaultSampler', shuffle=False)
        loader = dict(dataset=data[-at:] + data[:-at], sampler=order, batch_size=1)
        train(
            tmp_path / str(at),
            Normed(),
            AVERAGE,
            train_dataloader=loader,
            optim_wrapper=dict(**optim, accumulative_counts=accumulated),
        )
        content = torch.load(tmp_path / str(at) / 'epoch_2.pth', weights_only=False)
        for part in ('state_dict', 'ema_state_dict'):
            for name, tensor in content[part].items():
                assert tensor.isfinite().all(), (at, part, name)


def test_a_step_with_an_infinite_gradient_is_skipped(tiny_shapes, tmp_path):
    faulty = config(tmp_path, NANO, "custom_hooks = [dict(type='InfiniteGradient', iteration=2)]")
    output = succeed('train.py', faulty, '--work-dir', tmp_path / 'work', *short(tiny_shapes))
    assert 'the gradient of iteration 3 is NaN or Inf: the step is skipped' in output
    assert_finite(tmp_path / 'work/epoch_1.pth')


def test_an_accumulated_step_is_skipped_and_counted_once(tiny_shapes, tmp_path):
    fault = "custom_hooks = [dict(type='NanImages', iterations=[0])]"
    faulty = config(tmp_path, NANO, fault, 'optim_wrapper = dict(accumulative_counts=2)')
    output = succeed('train.py', faulty, '--work-dir', tmp_path / 'work', *short(tiny_shapes))
    (line,) = [line for line in output.splitlines() if 'is skipped' in line]
    assert 'the loss of iteration 2' in line
    assert line.count(str(tiny_shapes / 'images/training/')) == 2  # those of the first pass
    assert '1 steps were skipped' in output
    assert_finite(tmp_path / 'work/epoch_1.pth')


def test_too_many_steps_in_a_row_stop_the_training_with_advice(tiny_shapes, tmp_path):
    faulty = config(tmp_path, NANO, "custom_hooks = [dict(type='NanImages', iterations=[1, 2])]")
    options = short(tiny_shapes, 'default_hooks.non_finite.limit=2')
    error = fail('train.py', faulty, '--work-dir', tmp_path / 'work', *options)
    assert '2 steps in a row' in error and 'lower optim_wrapper.optimizer.lr' in error


def test_training_rolls_back_with_a_lower_learning_rate(tiny_shapes, tmp_path):
    # Steps 5 and 6 are in the second epoch; the checkpoint is of the first.
    faulty = config(tmp_path, NANO, "custom_hooks = [dict(type='NanImages', iterations=[4, 5])]")
    options = short(
        tiny_shapes,
        'train_cfg.max_epochs=3',
        'default_hooks.non_finite.limit=2',
        'default_hooks.non_finite.at_limit=roll_back',
        'default_hooks.non_finite.max_roll_backs=2',
    )
    work = tmp_path / 'work'
    error = fail('train.py', faulty, '--work-dir', work, *options)
    (log,) = work.glob('*/*.log')
    log = log.read_text()
    assert f'training rolls back to {work}/epoch_1.pth, with 0.5 times its learning rate' in log
    first, second, third = [
        float(line.split('lr: ')[1].split()[0]) for line in log.splitlines() if '[2][1/4]' in line
    ]
    assert second == pytest.approx(first / 2, rel=1e-3)
    assert third == pytest.approx(first / 4, rel=1e-3)  # from the same checkpoint once more
    assert 'steps in a row' in error  # the fault is in the data, so rolling back does not help
    assert_finite(work / 'epoch_1.pth')


def test_the_guard_changes_no_bit_of_a_step_with_finite_numbers():
    def trained(kind: type) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        optim = kind(torch.optim.AdamW(model.parameters(), lr=0.1), accumulative_counts=2)
        for _ in range(6):
            with optim.optim_context(model):
                loss = model(torch.randn(4, 5)).square().mean()
            optim.update_params(loss)
        return model.weight.detach()

    base = GuardedOptimWrapper.__mro__[2]
    assert base.__name__ == 'OptimWrapper'
    assert torch.equal(trained(GuardedOptimWrapper), trained(base))


# --- Data and memory --------------------------------------------------------------------------


def pipeline(fault: str) -> str:
    return f"""
_base_.train_dataloader.dataset.pipeline.insert(1, dict(type='{fault}'))
train_dataloader = _base_.train_dataloader
"""


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('Stall', r'DataLoader timed out after 3 seconds: .* is stuck'),
        ('Die', r'DataLoader worker .* (killed by signal|exited unexpectedly).*memory'),
    ],
)
def test_a_worker_that_gives_nothing_is_an_error_and_not_silence(
    fault, message, tiny_shapes, tmp_path
):
    faulty = config(tmp_path, NANO, pipeline(fault))
    workers = ['train_dataloader.num_workers=1', 'train_dataloader.timeout=3']
    options = short(tiny_shapes, *workers)
    error = fail('train.py', faulty, '--work-dir', tmp_path / 'work', *options)
    assert re.search(message, error), error


def test_memory_that_does_not_suffice_is_one_line_that_says_what_to_change(tiny_shapes, tmp_path):
    huge = 'model.roi_head.bbox_head.fc_out_channels=10000000000'
    options = short(tiny_shapes, huge)
    error = fail('train.py', NANO, '--work-dir', tmp_path / 'work', *options)
    assert "can't allocate memory: you tried to allocate" in error
    assert 'train_dataloader.batch_size' in error

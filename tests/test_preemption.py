"""Who hears the signals that end a training, who does not, and for how long."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import ENVIRONMENT, NANO, ROOT, on
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from gcvit_mm.engine import ExactEpochBasedTrainLoop, PreemptionHook, SafeCheckpointHook
from gcvit_mm.engine.setup import prepare

POOLS = """
import multiprocessing, os, signal, sys
from types import SimpleNamespace
import torch
from torch.utils.data import DataLoader
from gcvit_mm.engine import PreemptionHook

if __name__ == '__main__':
    method, rounds = sys.argv[1], int(sys.argv[2])
    multiprocessing.set_start_method(method)
    hook = PreemptionHook()
    loop = SimpleNamespace(dataloader=DataLoader(range(4), num_workers=1))
    hook.before_train(SimpleNamespace(train_loop=loop, val_loop=None, distributed=False))
    batches = iter(loop.dataloader)
    for number in range(rounds):
        pool = multiprocessing.Pool(3, maxtasksperchild=1)
        if number % 2:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        pool.terminate()
        pool.join()
    os.system(f'kill {batches._workers[0].pid}')  # by a process that has not started it
    signal.raise_signal(signal.SIGTERM)
    print([batch.item() for batch in batches], signal.Signals(hook.received).name)
"""
OTHER_SYSTEM = """
import os, signal
for name in ('SIGUSR1', 'pthread_sigmask', 'sigtimedwait'):
    delattr(signal, name)
def open_file(path, *arguments, opened=os.open, **options):
    if os.path.isdir(path):
        raise PermissionError(13, 'Permission denied', path)
    return opened(path, *arguments, **options)
os.open = open_file
"""


@pytest.mark.parametrize(
    ('method', 'rounds'), [('fork', 20), pytest.param('forkserver', 20, marks=pytest.mark.slow)]
)
def test_pools_of_others_are_ended_by_sigterm_and_workers_are_not(method, rounds, tmp_path):
    script = tmp_path / 'pools.py'
    script.write_text(POOLS)
    command = [sys.executable, script, method, str(rounds)]
    run = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, timeout=200)
    assert run.stdout == '[0, 1, 2, 3] SIGTERM\n', run.stderr


class Broken(BaseModel):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.error = error

    def forward(self, *inputs: object, mode: str) -> None:
        assert '_note' in str(signal.getsignal(signal.SIGTERM))
        raise self.error('of the model')


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_signals_are_handled_as_before_when_a_training_has_failed(error, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    runner = Runner(
        model=Broken(error),
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=[0, 1], sampler=dict(type='DefaultSampler'), batch_size=1),
        train_cfg=dict(type=ExactEpochBasedTrainLoop, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type=PreemptionHook)],
        experiment_name=tmp_path.name,
    )
    with pytest.raises(error, match='of the model'):
        runner.train()
    assert signal.getsignal(signal.SIGTERM) == before


class Line(Broken):
    def forward(self, *inputs: object, mode: str) -> dict:
        return dict(loss=self.layer.weight.sum())


class Interrupt(Hook):
    """Presses Ctrl-C in the second step, once or twice."""

    def __init__(self, times: int) -> None:
        self.times = times

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if batch_idx == 1:
            signal.raise_signal(signal.SIGINT)
            for _ in range(self.times - 1):
                signal.raise_signal(signal.SIGINT)  # torchrun repeats it
                time.sleep(1.1)
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(('times', 'saved'), [(1, ['iter_2.pth', 'last_checkpoint']), (2, [])])
def test_ctrl_c_saves_a_checkpoint_and_twice_ends_at_once(times, saved, tmp_path, capfd):
    before = signal.getsignal(signal.SIGINT)
    runner = Runner(
        model=Line(ValueError),
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=[0] * 4, sampler=dict(type='DefaultSampler'), batch_size=1),
        train_cfg=dict(type=ExactEpochBasedTrainLoop, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type=SafeCheckpointHook, interval=1)),
        custom_hooks=[dict(type=PreemptionHook), Interrupt(times)],
        experiment_name=tmp_path.name,
    )
    try:
        with pytest.raises(SystemExit if times == 1 else KeyboardInterrupt) as ended:
            runner.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert times == 2 or ended.value.code == 130
    assert 'Ctrl-C again ends it without saving' in capfd.readouterr().err
    assert (
        sorted(
            path.name for path in tmp_path.glob('*t*') if path.suffix != '.py' and path.is_file()
        )
        == saved
    )


def test_a_system_without_posix_signals_trains_and_saves(tiny_shapes, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(OTHER_SYSTEM)
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT['PYTHONPATH']])
    options = on(tiny_shapes, 'train_dataloader.num_workers=1', 'val_cfg=None')
    command = ['tools/train.py', NANO, '--work-dir', str(tmp_path / 'work'), *options]
    run = subprocess.run(
        [sys.executable, *command, 'val_dataloader=None', 'val_evaluator=None'],
        cwd=ROOT,
        env={**ENVIRONMENT, 'PYTHONPATH': path},
        text=True,
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / 'work/epoch_1.pth').exists()


def test_processes_are_not_forked_on_macos_unless_the_config_says_so(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    asked = Config(
        dict(custom_hooks=[], launcher='none', env_cfg=dict(mp_cfg=dict(mp_start_method='fork')))
    )
    for cfg, method in ((Config(dict(custom_hooks=[], launcher='none')), 'spawn'), (asked, 'fork')):
        prepare(cfg)
        assert cfg.env_cfg.mp_cfg.mp_start_method == method

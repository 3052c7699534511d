"""Who hears the signals that end a training, who does not, and for how long."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import ENVIRONMENT, NANO, ROOT, on
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import get_worker_info

from gcvit_mm.engine import (
    ExactEpochBasedTrainLoop,
    NonFiniteHook,
    PreemptionHook,
    SafeCheckpointHook,
)
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


@pytest.mark.parametrize(
    ('times', 'saved'),
    [(1, ['iter_2.pth', 'last_checkpoint']), (2, ['iter_1.pth', 'last_checkpoint'])],
)
def test_ctrl_c_saves_the_step_and_twice_the_one_before(times, saved, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, Line(ValueError), Interrupt(times))
    assert ended.value.code == 130
    assert 'Ctrl-C again interrupts the step' in capfd.readouterr().err
    assert (
        sorted(
            path.name for path in tmp_path.glob('*t*') if path.suffix != '.py' and path.is_file()
        )
        == saved
    )


def train(folder, model, *hooks, data=(0.0, 1.0, 2.0, 3.0), resume=None, **settings):
    """Train for two epochs, whose batches are one sample each."""
    before = {number: signal.getsignal(number) for number in (1, 2, 10, 15)}
    workers = settings.pop('workers', 0)
    defaults = dict(
        train_dataloader=dict(
            dataset=data,
            sampler=dict(type='DefaultSampler'),
            batch_size=1,
            num_workers=workers,
        ),
        train_cfg=dict(type=ExactEpochBasedTrainLoop, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type=SafeCheckpointHook, interval=1)),
    )
    runner = Runner(
        model,
        str(folder),
        custom_hooks=[dict(type=PreemptionHook), dict(type=NonFiniteHook), *hooks],
        randomness=dict(seed=0),
        resume=bool(resume),
        load_from=resume and str(resume),
        experiment_name=f'{folder.name}-{id(model)}',
        **{**defaults, **settings},
    )
    try:
        runner.train()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return runner


def insist() -> None:
    """Signal twice."""
    signal.raise_signal(signal.SIGTERM)
    time.sleep(1.1)
    signal.raise_signal(signal.SIGTERM)


class Normed(BaseModel):
    """A model with statistics, interrupted in the forward pass of a step, or of an evaluation."""

    def __init__(self, step: int = -1, mode: str = 'loss') -> None:
        super().__init__()
        self.norm, self.layer = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)
        for parameter in self.layer.parameters():
            torch.nn.init.constant_(parameter, 0.5)
        self.step, self.mode, self.calls = step, mode, 0

    def forward(self, value: float, mode: str) -> object:
        noise = torch.randn(4, 3) + value
        loss = self.layer(self.norm(noise)).square().mean()
        self.calls += mode == self.mode
        if mode == self.mode and self.calls == self.step:
            insist()  # after the statistics have changed
        return dict(loss=loss) if mode == 'loss' else [BaseDataElement()]


class Slow(torch.optim.SGD):
    """An optimizer that is interrupted when it has changed some of the parameters."""

    def step(self, closure: object = None) -> None:
        super().step(closure)
        if not self.param_groups[0].get('done'):
            self.param_groups[0]['done'] = True
            insist()
            with torch.no_grad():
                for group in self.param_groups:
                    group['params'][0] += 1


class Length(BaseMetric):
    def process(self, data_batch: object, data_samples: object) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        return dict(length=len(results))


EVALUATION = dict(
    val_cfg={},
    val_dataloader=dict(
        dataset=[0.0, 1.0], sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1
    ),
    val_evaluator=[dict(type=Length)],
)
AVERAGE = dict(type='EMAHook', momentum=0.3, update_buffers=True)


@pytest.mark.parametrize(
    ('step', 'mode', 'accumulated', 'saved'),
    [
        (1, 'loss', 1, 'iter_0.pth'),
        (3, 'loss', 1, 'iter_2.pth'),
        (5, 'loss', 1, 'iter_4.pth'),  # the first step of an epoch
        (3, 'loss', 2, 'iter_2.pth'),
        (2, 'predict', 1, 'iter_4.pth'),  # the first prediction is before the training
    ],
)
def test_a_second_signal_saves_what_trains_on_to_the_same_weights(
    step, mode, accumulated, saved, tmp_path
):
    settings = dict(EVALUATION)
    optimizer = dict(type='SGD', lr=0.1, momentum=0.9)
    settings['optim_wrapper'] = dict(optimizer=optimizer, accumulative_counts=accumulated)
    folders = [tmp_path / name for name in ('whole', 'work')]
    whole = train(folders[0], Normed(), AVERAGE, **settings)
    broken = Normed(step, mode)
    # Checkpoints come at the end, and so not before the evaluation.
    hooks = dict(checkpoint=dict(type=SafeCheckpointHook, interval=9))
    with pytest.raises(SystemExit) as ended:
        train(folders[1], broken, AVERAGE, **{**settings, 'default_hooks': hooks})
    assert ended.value.code == 0
    assert [path.name for path in folders[1].glob('*.pth')] == [saved]
    resumed = train(folders[1], Normed(), AVERAGE, resume=folders[1] / saved, **settings)
    assert resumed.iter == whole.iter == 8
    first, second = (torch.load(folder / 'epoch_2.pth', weights_only=False) for folder in folders)
    for part in ('state_dict', 'ema_state_dict'):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), f'{part}: {name}'


def test_early_stopping_counts_on_after_a_resumption(tmp_path):
    stop = dict(type='EarlyStoppingHook', monitor='length', rule='greater', patience=3)
    loop = dict(type=ExactEpochBasedTrainLoop, max_epochs=9)
    hooks = stop, dict(type='EvaluatorHook')
    (tmp_path / 'whole').mkdir()
    assert train(tmp_path / 'whole', Normed(), *hooks, train_cfg=loop, **EVALUATION).epoch == 4
    with pytest.raises(SystemExit):  # in the third epoch
        train(tmp_path, Normed(11), *hooks, train_cfg=loop, **EVALUATION)
    resume = tmp_path / 'iter_10.pth'
    runner = train(tmp_path, Normed(), *hooks, train_cfg=loop, resume=resume, **EVALUATION)
    assert runner.epoch == 4


def test_an_optimizer_is_never_interrupted(tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, Normed(), optim_wrapper=dict(optimizer=dict(type=Slow, lr=0.1)))
    (saved,) = tmp_path.glob('*.pth')
    assert saved.name == 'iter_1.pth'
    weights = torch.load(saved, weights_only=False)['state_dict']
    assert weights['norm.weight'].min() > 1.5


class Hanging:
    """A data set whose file system stops answering."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> float:
        if get_worker_info().id == 1:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(1000)
        return 0.0


def test_workers_that_hang_do_not_delay_a_signal(tmp_path):
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, Normed(), data=Hanging(), workers=2)
    assert ended.value.code == 0
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_1.pth']
    assert time.monotonic() - start < 100  # not the 1000 seconds of the workers


def test_a_closed_terminal_saves_and_nohup_trains_on(tiny_shapes, tmp_path):
    options = on(tiny_shapes, 'train_cfg.max_epochs=8', 'val_cfg=None', 'val_dataloader=None')
    options += ['val_evaluator=None', 'default_hooks.logger.interval=1']
    command = ['tools/train.py', NANO, '--work-dir', str(tmp_path / 'work'), *options]
    child, terminal = pty.fork()
    if not child:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, *command], ENVIRONMENT)
    shown = b''
    while b'[1][2/2]' not in shown:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            raise AssertionError(shown.decode()[-999:]) from None
    os.close(terminal)
    # 120: Python has something left to write to the terminal.
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 120)
    assert (tmp_path / 'work/last_checkpoint').read_text().startswith('iter_')
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in PreemptionHook().signals
    finally:
        signal.signal(signal.SIGHUP, before)


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

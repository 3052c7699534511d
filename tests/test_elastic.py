"""Trainings that go on with another number of processes, and after every kind of kill."""

import collections
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, ROOT
from preloaded import start_tool
from test_distributed import unused_port
from test_resume import assert_identical

from gcvit_mm.cli import locked
from gcvit_mm.datasets.shapes import make_shapes

BATCH, IMAGES = 12, 20
"""Images of a step, of all processes together, and of an epoch, whose last step is incomplete."""
INTERVAL = 4
"""Steps between checkpoints."""
CONFIG = f"""
_base_ = '{ROOT}/configs/upernet_gcvit_nano_shapes.py'
custom_imports = dict(imports=['gcvit_mm', 'gcvit_mm.datasets', 'gcvit_mm.engine', 'faults'])
custom_hooks = [dict(type='LossRecorder'), dict(type='SampleRecorder'), dict(type='Attack')]
norm = dict(_delete_=True, type='GN', num_groups=1)  # other norms' statistics are of a process
loss = dict(class_weight=None)  # with weights, each process divides by the sum of its own
head = dict(norm_cfg=norm, dropout_ratio=0.0, loss_decode=loss, channels=16)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(drop_path_rate=0.0, arch=dict(dim=16, depths=(1, 1, 1, 1))),
    decode_head=dict(in_channels=[16, 32, 64, 128], **head),
    auxiliary_head=dict(in_channels=64, **head),
)
# At higher rates rounding errors grow beyond 1e-5, as in any long training.
sgd = dict(_delete_=True, type='SGD', lr=0.001, momentum=0.9, weight_decay=0.01)
optim_wrapper = dict(optimizer=sgd)
train_dataloader = dict(sampler=dict(type='DefaultSampler'), persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(checkpoint=dict(interval={INTERVAL}, max_keep_ckpts=2, save_best=None))
"""


@pytest.fixture(scope='module')
def small_shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('small') / 'shapes', train=IMAGES, val=8, size=64)


@dataclass
class Training:
    """A training in a folder, by processes as torchrun starts them."""

    folder: Path
    data: Path
    steps: int

    def command(self, processes: int, workers: int) -> list[str]:
        """The arguments of a training, which resumes if it can."""
        self.folder.mkdir(exist_ok=True)
        config = self.folder / 'config.py'
        config.write_text(CONFIG)
        options = [f'{s}_dataloader.dataset.data_root={self.data}' for s in ('train', 'val')]
        options += [
            f'train_dataloader.batch_size={BATCH // processes}',
            f'train_dataloader.num_workers={workers}',
            f'train_cfg.max_iters={self.steps}',
            'train_cfg.val_interval=6',
        ]
        work_dir = ['--work-dir', self.folder / 'work', '--resume']
        return list(map(str, [config, *work_dir, '--cfg-options', *options]))

    def run(self, processes: int = 1, workers: int = 0, attack: str = '') -> list[int]:
        """Run until all processes have ended; return their exit statuses."""
        command = ['tools/train.py', *self.command(processes, workers)]
        log = self.folder / 'output'
        log.touch()
        shared = {**ENVIRONMENT, **({'ATTACK': attack} if attack else {})}
        if processes > 1:
            command[2:2] = ['--launcher', 'pytorch']
            shared |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': unused_port()}
            shared |= {'WORLD_SIZE': str(processes), 'LOCAL_WORLD_SIZE': str(processes)}
        started = []
        for rank in map(str, range(processes)):
            environment = {**shared, 'RANK': rank, 'LOCAL_RANK': rank}
            started.append(start_tool(command, ROOT, environment, [str(log)] * 2))
        for process in started:
            process.join(300)
        return [process.exitcode for process in started]

    def run_by_torchrun(self, processes: int, workers: int, attack: str) -> int:
        """Run until torchrun and its processes have ended; return its exit status."""
        command = self.command(processes, workers)
        command[1:1] = [str(processes)]
        environment = {**ENVIRONMENT, 'PORT': unused_port(), 'ATTACK': attack}
        with open(self.folder / 'output', 'a') as log:
            command = ['tools/dist_train.sh', *command]
            run = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        with locked(self.folder / 'work'):  # until the training has left it
            return run.returncode

    @property
    def log(self) -> str:
        return (self.folder / 'output').read_text()

    @property
    def steps_of_runs(self) -> list[tuple[int, float]]:
        """The number and the loss of each step, also of those that were repeated."""
        file = self.folder / 'work/losses'
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(step), float(loss)) for step, loss in map(str.split, lines)]

    @property
    def losses(self) -> dict[int, float]:
        """The loss of each step, the last one where steps were repeated."""
        return dict(self.steps_of_runs)

    @property
    def samples(self) -> dict[int, list[str]]:
        """The images of each step, of all processes."""
        found = collections.defaultdict(list)
        for line in (self.folder / 'work/samples').read_text().splitlines():
            step, *names = line.split()
            found[int(step)] += names
        return {step: sorted(names) for step, names in found.items()}


@pytest.mark.slow
def test_another_number_of_processes_at_each_restart_changes_neither_samples_nor_losses(
    small_shapes, tmp_path
):
    whole = Training(tmp_path / 'whole', small_shapes, 14)
    assert whole.run() == [0], whole.log
    assert {len(names) for names in whole.samples.values()} == {BATCH}
    elastic = Training(tmp_path / 'elastic', small_shapes, 14)
    for processes, stop in ((3, 2), (1, 4), (4, 7), (2, 9), (3, 11), (4, 99)):
        statuses = elastic.run(processes, attack=f'SIGTERM {stop} {processes - 1} 0')
        assert statuses == [0] * processes, elastic.log
    assert elastic.samples == whole.samples
    assert elastic.losses == pytest.approx(whole.losses, rel=1e-5)


KINDS = ('SIGKILL', 'SIGTERM', 'SIGHUP', 'validation', 'save', 'worker')


@pytest.mark.slow
@pytest.mark.parametrize('numbers', [(2,), (1, 2, 3, 4)], ids=['two', 'changing'])
def test_fifty_kills_of_every_kind_leave_the_training_as_it_would_be(
    numbers, small_shapes, tmp_path
):
    kills, seed = 50, random.randrange(2**32)
    choose = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(kills - 2)] + ['agent'] * 2
    choose.shuffle(kinds)
    steps = 2 * kills + 8
    whole = Training(tmp_path / 'whole', small_shapes, steps)
    assert whole.run(numbers[0]) == [0] * numbers[0], whole.log
    training = Training(tmp_path / 'work', small_shapes, steps)
    lost = collections.defaultdict(list)
    last = -1
    for i, kind in enumerate([*kinds, 'none']):
        processes = choose.choice(numbers if kind != 'agent' else [2])
        workers = choose.randrange(kind == 'worker', 3)
        rank = 0 if kind == 'save' else choose.randrange(processes)
        attack = f'{kind} {2 * i + choose.randrange(2)} {rank} {choose.uniform(0, 0.3)}'
        before = len(training.steps_of_runs)
        run = training.run if kind != 'agent' else training.run_by_torchrun
        statuses = run(processes, workers, attack)
        note = (
            f'seed {seed}: kill {i} ({attack}) of {processes}: {statuses}, {training.log[-5000:]}'
        )
        own = training.steps_of_runs[before:]
        if i:
            lost[kinds[i - 1]].append(last + 1 - own[0][0] if own else 0)
        last = own[-1][0] if own else last
        if kind in ('SIGTERM', 'SIGHUP', 'none'):
            assert statuses == [0] * processes, note
        else:
            assert statuses != [0] * processes, note
    print(f'seed {seed}: steps lost', {kind: sorted(counts) for kind, counts in lost.items()})
    assert {*lost['SIGTERM'], *lost['SIGHUP'], *lost['agent']} == {0}
    assert max(map(max, lost.values())) <= INTERVAL
    assert training.samples.keys() == whole.samples.keys()
    name = f'work/iter_{steps}.pth'
    if len(numbers) == 1:
        assert training.losses == whole.losses
        assert_identical(training.folder / name, whole.folder / name)
    else:
        assert training.losses == pytest.approx(whole.losses, rel=1e-5)

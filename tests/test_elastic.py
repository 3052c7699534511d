"""Trainings that go on with another number of processes, and after every kind of kill."""

import collections
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, ROOT
from preloaded import start_tool
from test_distributed import unused_port
from test_resume import assert_identical

from gcvit_mm.datasets.shapes import make_shapes

BATCH, IMAGES = 12, 20
"""Images of a step, of all processes together, and of an epoch, whose last step is incomplete."""
CONFIG = f"""
_base_ = '{ROOT}/configs/upernet_gcvit_nano_shapes.py'
custom_imports = dict(imports=['gcvit_mm', 'gcvit_mm.datasets', 'gcvit_mm.engine', 'faults'])
custom_hooks = [dict(type='LossRecorder'), dict(type='SampleRecorder'), dict(type='Attack')]
norm = dict(_delete_=True, type='GN', num_groups=8)  # the others' statistics are of a process
loss = dict(class_weight=None)  # with weights, each process divides by the sum of its own
head = dict(norm_cfg=norm, dropout_ratio=0.0, loss_decode=loss, channels=16)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(drop_path_rate=0.0),
    decode_head=head,
    auxiliary_head=head,
)
sgd = dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9, weight_decay=0.01)
optim_wrapper = dict(optimizer=sgd)
train_dataloader = dict(sampler=dict(type='DefaultSampler'), persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=2, save_best=None))
"""


@pytest.fixture(scope='module')
def small_shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('small') / 'shapes', train=IMAGES, val=3, size=64)


@dataclass
class Training:
    """A training in a folder, by processes as torchrun starts them."""

    folder: Path
    data: Path
    steps: int

    def run(self, processes: int = 1, workers: int = 0, attack: str = '') -> list[int]:
        """Run until all processes have ended; return their exit statuses."""
        self.folder.mkdir(exist_ok=True)
        config, log = self.folder / 'config.py', self.folder / 'output'
        config.write_text(CONFIG)
        log.touch()
        options = [f'{s}_dataloader.dataset.data_root={self.data}' for s in ('train', 'val')]
        options += [
            f'train_dataloader.batch_size={BATCH // processes}',
            f'train_dataloader.num_workers={workers}',
            f'train_cfg.max_iters={self.steps}',
            'train_cfg.val_interval=6',
        ]
        command = ['tools/train.py', config, '--work-dir', self.folder / 'work', '--resume']
        command += ['--launcher', 'pytorch'] * (processes > 1)
        command = list(map(str, [*command, '--cfg-options', *options]))
        group = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': unused_port(), 'ATTACK': attack}
        group |= {'WORLD_SIZE': str(processes), 'LOCAL_WORLD_SIZE': str(processes)}
        if not attack:
            del group['ATTACK']
        started = []
        for rank in map(str, range(processes)):
            environment = {**ENVIRONMENT, **group, 'RANK': rank, 'LOCAL_RANK': rank}
            started.append(start_tool(command, ROOT, environment, [str(log)] * 2))
        for process in started:
            process.join(100)
        return [process.exitcode for process in started]

    @property
    def log(self) -> str:
        return (self.folder / 'output').read_text()

    @property
    def losses(self) -> dict[int, float]:
        """The loss of each step, the last one where steps were repeated."""
        lines = map(str.split, (self.folder / 'work/losses').read_text().splitlines())
        return {int(step): float(loss) for step, loss in lines}

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

"""Several processes train one model together, and evaluate it as one process does."""

import json
import os
import re
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from command_line import ENVIRONMENT, NANO, ROOT, TRAIN_IMAGES, VAL_IMAGES, call, on, succeed

from gcvit_mm.datasets.shapes import make_shapes
from gcvit_mm.weights.files import read_checkpoint

PROCESSES = 2
pytestmark = pytest.mark.skipif(
    0 < torch.cuda.device_count() < PROCESSES, reason='there are fewer GPUs than processes'
)
CONFIG = f"""
_base_ = '{ROOT}/{NANO}'
custom_imports = dict(imports=['gcvit_mm', 'gcvit_mm.datasets', 'weights_hook'])
custom_hooks = [dict(type='WeightsHook')]
"""
HOOK = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class WeightsHook(Hook):
    def after_train(self, runner):
        total = sum(v.double().abs().sum().item() for v in runner.model.state_dict().values())
        # To files: two processes share one terminal, and their lines can run into each other.
        with open(f'{runner.work_dir}/weights_{runner.rank}', 'w') as file:
            file.write(repr(total))
"""


def unused_port() -> str:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return str(sock.getsockname()[1])


@pytest.fixture(autouse=True)
def free_port(monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, 'PORT', unused_port())


@pytest.mark.slow
def test_processes_train_one_model_and_go_on_with_it(tiny_shapes, tmp_path, monkeypatch):
    config, work_dir = tmp_path / 'config.py', tmp_path / 'work'
    config.write_text(CONFIG)
    (tmp_path / 'weights_hook.py').write_text(HOOK)
    monkeypatch.setitem(ENVIRONMENT, 'PYTHONPATH', f'{ROOT}{os.pathsep}{tmp_path}')
    options = on(tiny_shapes, 'train_dataloader.batch_size=2', 'train_cfg.val_interval=3')
    arguments = config, PROCESSES, '--work-dir', work_dir

    output = succeed('dist_train.sh', *arguments, *options, 'train_cfg.max_epochs=2')
    if not torch.cuda.is_available():
        assert 'no GPU on this machine: 2 CPU processes, connected by gloo' in output
    assert 'effective batch: 4 images (2 per process x 2 process(es) x 1 accumulated)' in output
    assert 'Epoch(train) [2][2/2]' in output
    first = weights(work_dir)

    monkeypatch.setitem(ENVIRONMENT, 'PATH', str(tmp_path))  # without bash
    output = succeed('dist_train.py', *arguments, '--resume', *options, 'train_cfg.max_epochs=3')
    assert f'resumed epoch: 2, iter: {2 * TRAIN_IMAGES // 4}' in output
    assert re.findall(r'Epoch\(train\) +\[(\d)\]', output) == ['3']
    assert re.search(r'Epoch\(val\) \[3\].*coco/segm_mAP', output)
    assert weights(work_dir) != first


def weights(work_dir):
    """What the processes say of their weights, which must be the same."""
    first, second = ((work_dir / f'weights_{rank}').read_text() for rank in range(PROCESSES))
    assert first == second
    return first


@pytest.mark.slow
def test_processes_evaluate_as_one_process_does(trained, tmp_path):
    assert VAL_IMAGES % PROCESSES
    metrics, images = [], []
    for script, processes in (('test.py', []), ('dist_test.sh', [PROCESSES])):
        out = '--work-dir', tmp_path / 'work', '--out', tmp_path / script
        succeed(script, NANO, trained.checkpoint, *processes, *out, *on(trained.data))
        content = json.loads((tmp_path / f'{script}.metrics.json').read_text())
        metrics.append({k: v for k, v in content.items() if k.startswith('coco/')})
        detections = json.loads((tmp_path / f'{script}.bbox.json').read_text())
        images.append(Counter(detection['image_id'] for detection in detections))
    assert images[0]
    assert images[0] == images[1]  # the images that pad the shares are not counted twice
    assert metrics[0]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)


# --- As one process ---------------------------------------------------------------------------

STEPS, BATCH = 6, 4
SEGMENTER = 'configs/upernet_gcvit_nano_shapes.py'
SAMPLES = f"""
_base_ = '{ROOT}/{SEGMENTER}'
custom_imports = dict(imports=['gcvit_mm', 'gcvit_mm.datasets', 'gcvit_mm.engine', 'faults'])
custom_hooks = [dict(type='LossRecorder'), dict(type='KillOnce', iteration={{kill}})]
norm = dict(_delete_=True, type='GN', num_groups=8)  # the others' statistics are of a process
loss = dict(class_weight=None)  # with weights, each process divides by the sum of its own
model = dict(
    backbone=dict(drop_path_rate=0.0),
    decode_head=dict(norm_cfg=norm, dropout_ratio=0.0, loss_decode=loss),
    auxiliary_head=dict(norm_cfg=norm, dropout_ratio=0.0, loss_decode=loss),
)
train_cfg = dict(max_iters={STEPS})
# Adam's first steps take the sign even of gradients that are nothing but rounding.
sgd = dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01)
optim_wrapper = dict(optimizer=sgd)
train_dataloader = dict(num_workers=1, sampler=dict(type='DefaultSampler'))
default_hooks = dict(checkpoint=dict(interval=2))
val_cfg = val_dataloader = val_evaluator = None
"""


@dataclass
class Run:
    """What a training of ``SAMPLES`` gave: the loss of each step, and the last checkpoint."""

    losses: dict[int, float]
    checkpoint: Path
    output: str = ''


def run_in(work: Path) -> Run:
    lines = (work / 'losses').read_text().splitlines()
    losses = {int(line.split()[0]): float(line.split()[1]) for line in lines}
    return Run(losses, work / f'iter_{STEPS}.pth')


def arguments_for(folder: Path, data: Path, processes: int, kill: int = -1) -> tuple[Path, list]:
    """The config in a folder, and the other arguments of a training by some processes."""
    config = folder / 'segmenter.py'
    config.write_text(SAMPLES.format(kill=kill))
    options = [
        f'train_dataloader.batch_size={BATCH // processes}',
        f'train_dataloader.dataset.data_root={data}',
    ]
    return config, ['--work-dir', folder / 'work', '--cfg-options', *options]


def train(
    folder: Path,
    data: Path,
    processes: int,
    kill: int = -1,
    options: Sequence[str] = (),
    steps: int = STEPS,
) -> Run:
    config, arguments = arguments_for(folder, data, processes, kill)
    arguments = [*options, *arguments, f'train_cfg.max_iters={steps}']
    if processes == 1:
        output = succeed('train.py', config, *arguments)
    else:
        output = succeed_anyhow('dist_train.sh', config, processes, *arguments)
    run = run_in(folder / 'work')
    run.output = output
    return run


@pytest.fixture(scope='module')
def by_two(tiny_shapes, tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, 'PORT', unused_port())
        return train(tmp_path_factory.mktemp('two'), tiny_shapes, 2)


def succeed_anyhow(*arguments):
    """Like ``succeed``, where torchrun may print the traceback of a process that died."""
    run = call(*arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.slow
def test_two_and_four_processes_have_the_losses_of_one_at_the_same_total_batch(
    by_two, tiny_shapes, tmp_path
):
    for processes in (1, 4):
        (tmp_path / f'{processes}').mkdir()
    one = train(tmp_path / '1', tiny_shapes, 1).losses
    four = train(tmp_path / '4', tiny_shapes, 4).losses
    assert sorted(one) == list(range(STEPS))
    assert len(set(one.values())) == STEPS
    assert by_two.losses == pytest.approx(one, rel=1e-5)
    assert four == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_result_is_the_same(
    by_two, tiny_shapes, tmp_path, monkeypatch
):
    monkeypatch.setitem(ENVIRONMENT, 'MAX_RESTARTS', '1')
    run = train(tmp_path, tiny_shapes, 2, kill=4)
    # The other process may save the step after it, on torchrun's signal.
    assert re.search(r'training resumes from .*/work/iter_[45]\.pth', run.output)
    assert run.losses == by_two.losses
    expected = read_checkpoint(by_two.checkpoint)['state_dict']
    found = read_checkpoint(run.checkpoint)['state_dict']
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_to_torchrun_alone_saves_amid_a_long_step(number, status, tmp_path, tiny_shapes):
    config, arguments = arguments_for(tmp_path, tiny_shapes, 2)
    config.write_text(config.read_text().replace("dict(type='KillOnce'", "dict(type='Hang'"))
    config.write_text(config.read_text().replace('iteration=-1', 'iteration=3'))
    agent = subprocess.Popen(
        ['tools/dist_train.sh', config, '2', *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = ''
    while 'hangs' not in output:
        output += agent.stdout.readline() or pytest.fail(output)
    agent.send_signal(number)  # docker stop and Kubernetes signal the first process only
    output += agent.communicate(timeout=200)[0]
    assert agent.returncode == status, output
    assert 'training ends after iteration 3, saved' in output
    assert 'Traceback' not in output
    assert (tmp_path / 'work/last_checkpoint').read_text() == 'iter_3.pth'


@pytest.mark.slow
def test_two_machines_train_as_two_processes_do(by_two, tmp_path, tiny_shapes):
    config, arguments = arguments_for(tmp_path, tiny_shapes, 2)
    machines = {'NNODES': '2', 'MASTER_ADDR': '127.0.0.2'}
    agents = [
        subprocess.Popen(
            ['tools/dist_train.sh', config, '1', *map(str, arguments)],
            cwd=ROOT,
            env={**ENVIRONMENT, **machines, 'NODE_RANK': str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    outputs = [agent.communicate(timeout=200)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert run_in(tmp_path / 'work').losses == by_two.losses


@pytest.fixture(scope='module')
def many_shapes(tmp_path_factory):
    """Seven validation images, which neither two nor three processes share evenly."""
    root = tmp_path_factory.mktemp('seven') / 'shapes'
    return make_shapes(root, train=TRAIN_IMAGES, val=7, size=64)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_one_two_and_three_processes_evaluate_identically(task, many_shapes, trained, tmp_path):
    config, options, checkpoint = NANO, on(many_shapes), trained.checkpoint
    if task == 'segmentation':
        config = SEGMENTER
        roots = [
            f'{s}_dataloader.dataset.data_root={many_shapes}' for s in ('train', 'val', 'test')
        ]
        options = [
            '--cfg-options',
            *roots,
            'train_cfg.max_iters=2',
            'train_dataloader.batch_size=4',
        ]
        succeed('train.py', config, '--work-dir', tmp_path / 'work', *options)
        checkpoint = tmp_path / 'work/iter_2.pth'
    metrics = []
    for processes in (1, 2, 3):
        out = tmp_path / f'{processes}'
        how = ('test.py', config, checkpoint)
        if processes > 1:
            how = ('dist_test.sh', config, checkpoint, processes)
        succeed(*how, '--work-dir', tmp_path / 'work', '--out', out, *options)
        content = json.loads(Path(f'{out}.metrics.json').read_text())
        times = ('time', 'data_time')
        metrics.append({key: value for key, value in content.items() if key not in times})
    assert len(metrics[0]) > 2
    assert metrics[0] == metrics[1] == metrics[2]


# --- Models in parts --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_in_parts_is_trained_and_saved_as_a_whole_one_is(by_two, tiny_shapes, tmp_path):
    parts = train(tmp_path, tiny_shapes, 2, options=['--shard'])
    kept, total = re.search(
        r'this process holds ([\d,]+) of ([\d,]+) parameters', parts.output
    ).groups()
    assert int(kept.replace(',', '')) == pytest.approx(int(total.replace(',', '')) / 2, rel=0.05)
    assert parts.losses == pytest.approx(by_two.losses, rel=1e-5)
    expected, found = read_checkpoint(by_two.checkpoint), read_checkpoint(parts.checkpoint)
    torch.testing.assert_close(found['state_dict'], expected['state_dict'], rtol=1e-4, atol=1e-5)
    whole, spread = (content['optimizer'] for content in (expected, found))
    assert whole['param_groups'] == spread['param_groups']
    torch.testing.assert_close(spread['state'], whole['state'], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('first', ['whole', 'parts'])
def test_models_in_parts_and_whole_go_on_from_each_others_checkpoints(
    first, by_two, tiny_shapes, tmp_path
):
    how = {'whole': [], 'parts': ['--shard']}
    then = {'whole': 'parts', 'parts': 'whole'}[first]
    train(tmp_path, tiny_shapes, 2, options=how[first], steps=4)
    run = train(tmp_path, tiny_shapes, 2, options=[*how[then], '--resume'])
    assert f'training resumes from {tmp_path}/work/iter_4.pth' in run.output
    assert sorted(run.losses) == list(range(STEPS))
    assert run.losses == pytest.approx(by_two.losses, rel=1e-5)

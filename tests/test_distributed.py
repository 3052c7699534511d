"""Several processes train one model together, and evaluate it as one process does."""

import json
import os
import re
import socket
from collections import Counter

import pytest
import torch
from command_line import ENVIRONMENT, NANO, ROOT, TRAIN_IMAGES, VAL_IMAGES, on, succeed

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


@pytest.fixture(autouse=True)
def free_port(monkeypatch):
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        monkeypatch.setitem(ENVIRONMENT, 'PORT', str(sock.getsockname()[1]))


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
    assert 'effective batch: 4 images (2 a process x 2 process(es) x 1 accumulated)' in output
    assert 'Epoch(train) [2][2/2]' in output
    first = weights(work_dir)

    output = succeed('dist_train.sh', *arguments, '--resume', *options, 'train_cfg.max_epochs=3')
    assert f'resumed epoch: 2, iter: {2 * TRAIN_IMAGES // 4}' in output
    assert re.findall(r'Epoch\(train\) +\[(\d)\]', output) == ['3']
    assert re.search(r'Epoch\(val\) \[3\].*coco/segm_mAP', output)
    assert weights(work_dir) != first


def weights(work_dir):
    """What the processes say of their weights, which must be the same."""
    first, second = ((work_dir / f'weights_{rank}').read_text() for rank in range(PROCESSES))
    assert first == second
    return first


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

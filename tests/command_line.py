"""The scripts under ``tools/`` as a person starts them, on a data set of a few small images."""

import os
import subprocess
import sys
from pathlib import Path

from preloaded import run_tool

ROOT = Path(__file__).resolve().parents[1]
NANO = 'configs/mask_rcnn_gcvit_nano_shapes.py'
TRAIN_IMAGES, VAL_IMAGES = 8, 5
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != 'COLUMNS'},
    'OMP_NUM_THREADS': '1',
    'GLOO_SOCKET_IFNAME': 'lo',  # else gloo looks up the machine's name, for seconds
    'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),  # faults.py is there
    'PATH': os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']]),
}
AS_A_SHELL_DOES = ('doctor.py',)
"""Tools whose results depend on what is imported."""


def on(data: Path, *more: str) -> list[str]:
    """Arguments that put the nano config on a data set, for one epoch of two steps."""
    options = {
        'train_dataloader.batch_size': TRAIN_IMAGES // 2,
        'train_cfg.max_epochs': 1,
    }
    for split, folder in {'train': 'training', 'val': 'validation', 'test': 'validation'}.items():
        options |= {
            f'{split}_dataloader.dataset.data_root': data,
            f'{split}_dataloader.num_workers': 0,
            f'{split}_dataloader.persistent_workers': False,
        }
        if split != 'train':
            options[f'{split}_evaluator.ann_file'] = data / f'annotations/instances_{folder}.json'
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items()), *more]


def call(script: str, *arguments: object, **streams: object) -> subprocess.CompletedProcess:
    """Run ``tools/SCRIPT.py`` or ``tools/SCRIPT.sh`` to its end."""
    command = [f'tools/{script}', *map(str, arguments)]
    if script.endswith('.py') and not streams and script not in AS_A_SHELL_DOES:
        return run_tool(command, ROOT, ENVIRONMENT)
    if script.endswith('.py'):
        command.insert(0, sys.executable)
    streams = streams or {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, **streams)


def succeed(script: str, *arguments: object) -> str:
    """Run a script that must succeed; give what it wrote."""
    run = call(script, *arguments)
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert 'Traceback' not in output
    return output


def fail(script: str, *arguments: object) -> str:
    """Run a script that must fail; give its error, which must be one line and the last."""
    run = call(script, *arguments)
    assert run.returncode == 1, run.stdout + run.stderr
    assert 'Traceback' not in run.stdout + run.stderr
    assert run.stderr.count('error: ') == 1, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith('error: '), run.stderr
    return last


def log_of(work_dir: Path) -> str:
    """The log file of a work directory in which one run has been."""
    (log,) = work_dir.glob('*/*.log')
    return log.read_text()

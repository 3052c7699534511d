"""The scripts for SLURM, with stand-ins for its commands: what they ask for, and what they do then.

With real SLURM they were tried by hand: docs/slurm.md.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, NANO, ROOT, on

SBATCH = """#!/usr/bin/env bash
# Runs the job at once, as its only process; its output goes to a file.
echo "sbatch $*" >> calls
while [[ $1 = -* ]]; do shift; done
export SLURM_JOB_ID=7 SLURM_CPUS_PER_TASK=1
exec "$@" > job.log 2>&1
"""
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> calls
while [[ $1 = -* ]]; do shift; done
export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODELIST=here SLURM_JOB_ID=7
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && echo 127.0.0.1 || echo "scontrol $*" >> calls
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts a script in a folder of its own."""
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name, text in {'sbatch': SBATCH, 'srun': SRUN, 'scontrol': SCONTROL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), ENVIRONMENT['PATH']])

    def start(script: str, *arguments: object, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [ROOT / 'tools' / script, *map(str, arguments)],
            cwd=tmp_path,
            env={**ENVIRONMENT, 'PATH': path, 'GRES': '', 'CPUS_PER_TASK': '1', **variables},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


def training(data: Path, *options: str) -> list[object]:
    none = ['val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']
    each = ['train_dataloader.batch_size=1', 'default_hooks.logger.interval=1']
    return ['part', 'name', ROOT / NANO, 1, '--work-dir', 'work', *on(data, *each, *none, *options)]


@pytest.mark.slow
def test_a_job_that_comes_to_its_end_is_not_queued_again(slurm, tiny_shapes, tmp_path):
    job = slurm('slurm_train.sh', *training(tiny_shapes), SRUN_ARGS='--time=5 --qos=long')
    assert job.wait(100) == 0, (tmp_path / 'job.log').read_text()
    assert (tmp_path / 'work/epoch_1.pth').exists()
    sbatch, srun = (tmp_path / 'calls').read_text().splitlines()
    for option in ('--partition=part', '--job-name=name', '--ntasks=1', '--requeue', '--time=5',
                   '--qos=long', '--signal=B:USR1@120'):  # fmt: skip
        assert option in sbatch
    assert '--gres' not in sbatch
    assert '--kill-on-bad-exit=1' in srun


@pytest.mark.slow
def test_a_job_whose_time_ends_saves_and_is_queued_again(slurm, tiny_shapes, tmp_path):
    job = slurm('slurm_train.sh', *training(tiny_shapes, 'train_cfg.max_epochs=200'))
    log = tmp_path / 'job.log'
    wait_for(log, '[1][2/8]')
    job.send_signal(signal.SIGUSR1)  # to the batch script, as SLURM does
    assert job.wait(60) == 0, log.read_text()
    assert 'SIGUSR1: training ends after iteration' in log.read_text()
    assert list((tmp_path / 'work').glob('iter_*.pth'))
    assert (tmp_path / 'calls').read_text().splitlines()[-1] == 'scontrol requeue 7'


@pytest.mark.slow
def test_a_job_that_fails_is_not_queued_again(slurm, tiny_shapes, tmp_path):
    job = slurm('slurm_train.sh', *training(tiny_shapes / 'absent'))
    assert job.wait(60) == 1
    assert 'error: data folder' in (tmp_path / 'job.log').read_text()
    assert 'requeue' not in (tmp_path / 'calls').read_text().replace('--requeue', '')


def wait_for(log: Path, text: str) -> None:
    for _ in range(600):
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f'{text!r} never came: {log.read_text()}')


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        ('slurm_train.sh', ['part', 'name', ROOT / NANO], 'usage: '),
        ('slurm_train.sh', ['part', 'name', ROOT / NANO, 'many'], 'usage: '),
        ('slurm_test.sh', ['part', 'name', ROOT / NANO, 1], 'usage: '),
        ('slurm_train.sh', ['part', 'name', 'none.py', 1], 'error: config none.py does not exist'),
    ],
)
def test_what_is_wrong_is_said_before_the_job_waits(script, arguments, message, slurm, tmp_path):
    process = slurm(script, *arguments)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert message in output
    assert len(output.splitlines()) == 1
    assert not (tmp_path / 'calls').exists()


def test_a_machine_without_slurm_is_told_of_the_other_scripts(tmp_path):
    command = ['/bin/bash', ROOT / 'tools/slurm_train.sh', 'part', 'name', ROOT / NANO, '1']
    for name in ('bash', 'dirname'):
        (tmp_path / name).symlink_to(shutil.which(name))
    process = subprocess.run(
        command, cwd=tmp_path, env={'PATH': str(tmp_path)}, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert 'error: sbatch was not found' in process.stderr
    assert 'tools/dist_train.sh' in process.stderr

"""The files for Kubernetes and SkyPilot: their commands run as the clusters run and stop them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command_line import ENVIRONMENT, NANO, ROOT, on
from test_distributed import unused_port

OPTION = 'default_hooks.preemption.exit_status='
RESTARTED = [75, 143]
ENTRYPOINT = [sys.executable, '-c', 'from gcvit_mm.command import main; main()']
"""The command `gcvit-mm`, which the image runs."""


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / 'tools' / name).read_text())


def pod_of(job: dict) -> dict:
    return job['template']['spec']


JOB = read('kubernetes_job.yaml')['spec']
JOB_SET = read('kubernetes_jobset.yaml')['spec']
(MACHINES,) = (job['template']['spec'] for job in JOB_SET['replicatedJobs'])
TASK = read('skypilot_task.yaml')


@pytest.mark.parametrize('job', [JOB, MACHINES], ids=['job', 'jobset'])
def test_a_pod_that_has_saved_on_a_signal_is_started_again_and_never_counts_as_finished(job):
    pod = pod_of(job)
    (container,) = pod['containers']
    assert '--resume' in container['args']
    assert int(container['args'][-1].removeprefix(OPTION)) == RESTARTED[0]
    codes, condition = (rule for rule in job['podFailurePolicy']['rules'][:2])
    assert codes['onExitCodes']['values'] == RESTARTED
    assert condition['onPodConditions'][0]['type'] == 'DisruptionTarget'
    if job is JOB:
        assert codes['action'] == condition['action'] == 'Ignore'
    else:  # one machine fails, and all are started again
        assert codes['action'] == condition['action'] == 'FailJob'
        (rule,) = JOB_SET['failurePolicy']['rules']
        assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
        assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
    assert pod['restartPolicy'] == 'Never'  # Kubernetes takes a podFailurePolicy with no other
    assert int(container['args'][2]) == container['resources']['limits']['nvidia.com/gpu']


def test_the_machines_of_a_job_set_know_their_number_and_the_first_of_them():
    (container,) = pod_of(MACHINES)['containers']
    variables = {entry['name']: entry for entry in container['env']}
    assert int(variables['NNODES']['value']) == MACHINES['completions'] == MACHINES['parallelism']
    name, machines = 'gcvit-mm', JOB_SET['replicatedJobs'][0]['name']
    assert read('kubernetes_jobset.yaml')['metadata']['name'] == name
    assert variables['MASTER_ADDR']['value'] == f'{name}-{machines}-0-0.{name}'
    assert 'job-completion-index' in str(variables['NODE_RANK'])


def test_a_task_of_skypilot_is_recovered_after_a_signal():
    assert TASK['resources']['job_recovery']['recover_on_exit_codes'] == RESTARTED
    assert f'{OPTION}{RESTARTED[0]}' in TASK['run']
    assert '--resume' in TASK['run']


def kubernetes_command(config: str, work: Path, options: list[str]) -> list[str]:
    """What kubelet starts, on small data and with one process."""
    args = list(pod_of(JOB)['containers'][0]['args'])
    args[1:3] = [config, '1']
    args[args.index(next(a for a in args if a.startswith('--work-dir')))] = f'--work-dir={work}'
    command = [*ENTRYPOINT, *args, *options]
    isolated = ['unshare', '--fork', '--pid', '--mount-proc', '--kill-child']
    if shutil.which('unshare') and not subprocess.run([*isolated, 'true']).returncode:
        return [*isolated, *command]  # as process 1, the hardest case
    return command


def skypilot_command(config: str, work: Path, options: list[str]) -> list[str]:
    run = TASK['run'].strip().replace('source .venv/bin/activate', 'set -e')
    for old, new in {
        'configs/mask_rcnn_gcvit_tiny_coco.py': config,
        '/checkpoints/mask_rcnn_gcvit_tiny_coco': str(work),
    }.items():
        assert old in run
        run = run.replace(old, new)
    return ['bash', '-c', f'{run} {" ".join(map(repr, options))}']


SKYPILOT = {
    'SKYPILOT_NUM_NODES': '1',
    'SKYPILOT_NODE_RANK': '0',
    'SKYPILOT_NODE_IPS': '127.0.0.1\n127.0.0.2',
    'SKYPILOT_NUM_GPUS_PER_NODE': '1',
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('command', 'moments', 'statuses'),
    [
        (
            kubernetes_command,
            ['nothing to resume', '[1][2/8]', 'Epoch(train)'],
            [{143}, {75}, {75, 143}],
        ),
        (skypilot_command, ['[1][2/8]'], [{75}]),
    ],
)
def test_the_command_of_a_cluster_is_stopped_and_started_until_the_training_has_finished(
    command, moments, statuses, tiny_shapes, tmp_path
):
    options = on(
        tiny_shapes,
        'train_cfg.max_epochs=4',
        'train_dataloader.batch_size=1',
        'default_hooks.logger.interval=1',
        *('val_cfg=None', 'val_dataloader=None', 'val_evaluator=None'),
    )[1:]
    command = command(str(ROOT / NANO), tmp_path / 'work', options)
    found = []
    for moment in [*moments, None]:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**ENVIRONMENT, **SKYPILOT, 'PORT': unused_port()},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = ''
        while moment and moment not in output:
            output += process.stdout.readline() or pytest.fail(output)
        if moment:
            main = first_process(process.pid, command[0])
            os.kill(main, signal.SIGTERM)
            if len(found) == 2:  # and another time, while it ends
                time.sleep(1.5)
                if process.poll() is None:
                    os.kill(main, signal.SIGTERM)
        output += process.communicate(timeout=200)[0]
        assert 'Traceback' not in output, output
        found.append(process.returncode)
        print(moment, process.returncode, output[-3000:])
    assert found[-1] == 0
    assert all(a in b for a, b in zip(found[:-1], statuses, strict=True)), found
    assert set().union(*statuses) <= set(RESTARTED)
    assert (tmp_path / 'work/epoch_4.pth').exists()


@pytest.mark.slow
def test_all_machines_of_a_job_set_save_and_end_when_one_is_drained(tiny_shapes, tmp_path):
    options = on(tiny_shapes, 'train_cfg.max_epochs=8', 'train_dataloader.batch_size=1')[1:]
    options += ['default_hooks.logger.interval=1']
    options += ['val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']
    (container,) = pod_of(MACHINES)['containers']
    args = [a for a in container['args'][3:] if not a.startswith('--work-dir')]
    command = [*ENTRYPOINT, 'dist_train', NANO, '1']
    command += [f'--work-dir={tmp_path}/work', *args, *options]
    shared = {**ENVIRONMENT, 'PORT': unused_port(), 'MASTER_ADDR': '127.0.0.2', 'NNODES': '2'}
    logs = [tmp_path / str(rank) for rank in range(2)]
    agents = []
    for rank, log in enumerate(logs):
        environment = {**shared, 'NODE_RANK': str(rank)}
        with open(log, 'w') as file:
            agents.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
            )
    while '[1][2/4]' not in logs[0].read_text() + logs[1].read_text():
        assert agents[0].poll() is None, logs[0].read_text()
        time.sleep(0.1)
    agents[1].terminate()
    assert [agent.wait(200) for agent in agents] == [75, 75], [log.read_text() for log in logs]
    assert 'Traceback' not in logs[0].read_text() + logs[1].read_text()
    assert (tmp_path / 'work/last_checkpoint').read_text().startswith('iter_')


def first_process(pid: int, program: str) -> int:
    """The process that a cluster signals: that in a namespace of its own, or the one started."""
    if program != 'unshare':
        return pid
    return int(Path(f'/proc/{pid}/task/{pid}/children').read_text().split()[0])

"""From a config to what mmengine's runner takes: shared by trainings and tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_world_size, init_dist, is_main_process
from mmengine.utils.dl_utils import set_multi_processing

from ..cli import BAD_IMAGES
from ..config import find_steps, leaf_datasets
from ..errors import UserError
from .loaders import register_loaders

LOADER_TIMEOUT = 600
"""Seconds after which a loader that gives no batch is an error."""
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def prepare(cfg: Config, *, exact_checkpoint: bool, skip_bad_images: int) -> None:
    """What every run gets: safe reading of checkpoints, our hooks, processes that find each other.

    Raises:
        UserError: There are fewer GPUs than processes.
    """
    register_loaders()
    own: list[dict[str, Any]] = [
        dict(type='RunSummaryHook'),
        dict(type='DataTimeHook'),
        dict(type='ProgressBarHook'),
        dict(type='CheckpointGuardHook', exact=exact_checkpoint),
        dict(type='PreemptionHook'),
    ]
    # The config that a run leaves in its work folder has them already.
    types = [hook['type'] for hook in own]
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.get('type') not in types] + own
    if sys.platform == 'darwin':  # where mmengine forks by default, which Metal does not survive
        env = cfg.get('env_cfg', {})
        cfg.env_cfg = {**env, 'mp_cfg': {'mp_start_method': 'spawn', **env.get('mp_cfg', {})}}
    for name in LOADERS:
        if cfg.get(name):
            cfg[name].setdefault('worker_init_fn', dict(type='init_worker'))
            if cfg[name].get('num_workers'):
                cfg[name].setdefault('timeout', LOADER_TIMEOUT)
    if skip_bad_images:
        _skip_bad_images(cfg, skip_bad_images)
    _init_processes(cfg)


def _skip_bad_images(cfg: Config, most: int) -> None:
    os.makedirs(cfg.work_dir, exist_ok=True)
    path = os.path.join(cfg.work_dir, BAD_IMAGES)
    Path(path).unlink(missing_ok=True)
    loaders = []
    for name in LOADERS:
        for dataset in leaf_datasets(cfg.get(name)):
            for step in find_steps(dataset.get('pipeline', []), 'LoadWholeImage'):
                step.update(
                    on_bad='blank' if dataset.get('test_mode') else 'skip',
                    bad_images_file=path,
                    max_bad_images=most,
                )
                loaders.append(step)
    if not loaders:
        raise UserError('--skip-bad-images: no pipeline of this config loads by LoadWholeImage')


def report_bad_images(cfg: Config) -> None:
    """Say at the end of a run how many images were skipped."""
    path = Path(cfg.work_dir) / BAD_IMAGES
    if is_main_process() and path.is_file():
        count = len(set(path.read_text().splitlines()))
        print(f'{count} bad image(s) skipped, listed in {path}')


def _init_processes(cfg: Config) -> None:
    if cfg.launcher == 'none':
        return
    env, gpus = cfg.get('env_cfg', {}), torch.cuda.device_count()
    here = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE')
    if here:
        check_gpus(int(here), gpus)
    if gpus or cfg.launcher == 'mpi':
        set_multi_processing(**env.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **env.get('dist_cfg', {}))
        return
    if cfg.launcher == 'slurm':
        _name_slurm_processes()
    # mmengine would select a GPU for each process; it leaves alone what is initialised already.
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,  # as mmengine has it on GPUs
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if is_main_process():
        print(f'no GPU on this machine: {get_world_size()} CPU processes, connected by gloo')


def _name_slurm_processes() -> None:
    """Tell PyTorch what SLURM says of this process, as torchrun does."""
    names = dict(RANK='PROCID', WORLD_SIZE='NTASKS', LOCAL_RANK='LOCALID')
    for name, slurm in names.items():
        os.environ[name] = os.environ[f'SLURM_{slurm}']
    nodes = os.environ['SLURM_NODELIST']
    shown = subprocess.run(
        ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True
    )
    os.environ.setdefault('MASTER_ADDR', shown.stdout.split()[0])
    os.environ.setdefault('MASTER_PORT', '29500')


def agree(decide: Callable[[], Any]) -> Any:
    """What the main process decides, in all processes."""
    decided = [decide() if is_main_process() else None]
    broadcast_object_list(decided)
    return decided[0]


def check_gpus(processes: int, gpus: int) -> None:
    """Raise ``UserError`` where a machine has GPUs, but fewer than processes."""
    if 0 < gpus < processes:
        raise UserError(
            f'{processes} processes were asked for, but this machine has {gpus} GPU(s): pass '
            f'{gpus} to tools/dist_train.sh or tools/dist_test.sh, or as GPUS_PER_NODE to '
            'tools/slurm_train.sh or tools/slurm_test.sh'
        )

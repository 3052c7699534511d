"""The process group of a run: setting it up, and sharing decisions."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_world_size, init_dist, is_main_process
from mmengine.utils.dl_utils import set_multi_processing

from ..errors import UserError


def init_processes(cfg: Config) -> None:
    """Initialise the process group for ``cfg.launcher``, with gloo on machines without GPUs."""
    if cfg.launcher == 'none':
        return
    if sys.platform == 'linux' and 'TORCHELASTIC_RUN_ID' in os.environ:
        # PR_SET_PDEATHSIG: save and end if torchrun is killed, instead of training on without it.
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
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
    # mmengine would select a GPU for each process, but skips a process group that exists already.
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,  # mmengine's default on GPUs
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if is_main_process():
        print(f'no GPU on this machine: {get_world_size()} CPU processes, connected by gloo')


def _name_slurm_processes() -> None:
    """Set the environment variables that torchrun would set, from those of SLURM."""
    names = dict(RANK='PROCID', WORLD_SIZE='NTASKS', LOCAL_RANK='LOCALID')
    for name, slurm in names.items():
        os.environ[name] = os.environ[f'SLURM_{slurm}']
    nodes = os.environ['SLURM_NODELIST']
    shown = subprocess.run(
        ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True
    )
    os.environ.setdefault('MASTER_ADDR', shown.stdout.split()[0])
    os.environ.setdefault('MASTER_PORT', '29500')


def broadcast_from_main(decide: Callable[[], Any]) -> Any:
    """Call ``decide`` in the main process, and return the result in all processes."""
    decided = [decide() if is_main_process() else None]
    broadcast_object_list(decided)
    return decided[0]


def check_gpus(processes: int, gpus: int) -> None:
    """Raise a ``UserError`` if the machine has GPUs, but fewer than processes."""
    if 0 < gpus < processes:
        raise UserError(
            f'{processes} processes were requested, but this machine has {gpus} GPU(s): pass '
            f'{gpus} to tools/dist_train.sh or tools/dist_test.sh, or as GPUS_PER_NODE to '
            'tools/slurm_train.sh or tools/slurm_test.sh'
        )

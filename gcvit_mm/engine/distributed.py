"""The processes of a run: how they find each other, and agree."""

import os
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_world_size, init_dist, is_main_process
from mmengine.utils.dl_utils import set_multi_processing

from ..errors import UserError


def init_processes(cfg: Config) -> None:
    """Connect the processes of ``cfg.launcher``, by gloo on machines without GPUs.

    Raises:
        UserError: There are fewer GPUs than processes.
    """
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


def broadcast_from_main(decide: Callable[[], Any]) -> Any:
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

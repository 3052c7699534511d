"""Behind ``dist_train`` and ``dist_test``: start a tool in several processes, by torchrun."""

import argparse
import os
import time
from pathlib import Path

import _package  # noqa: F401

from gcvit_mm.cli import run


def start(script: str, description: str, *files: str) -> None:
    """Become torchrun, as the command line asks for.

    Args:
        script: Name of the tool.
        description: What the command does.
        files: The tool's arguments that stand before the number of processes.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog='Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT from the environment.',
    )
    for name in files:
        parser.add_argument(name)
    parser.add_argument('gpus', type=int, help='number of processes on this machine')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=f'further ones of {script}')
    args = parser.parse_args()
    if args.gpus < 1:
        parser.error(f'gpus is {args.gpus}: at least one process is needed')
    run(lambda: check(args.gpus))
    # Processes that are started again go on from the checkpoints of this run.
    os.environ['GCVIT_MM_STARTED'] = time.strftime('%Y%m%d_%H%M%S')
    # torchrun would give them the addresses of the processes that died, which it keeps in a store.
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    tool = [str(Path(__file__).with_name(script)), *(vars(args)[name] for name in files)]

    from torch.distributed.run import main as torchrun

    torchrun([*options(args.gpus), *tool, *args.arguments, '--launcher', 'pytorch'])


def check(processes: int) -> None:
    """Refuse what the machine lacks before processes start: torchrun's message would bury ours."""
    import torch

    from gcvit_mm.engine.distributed import check_gpus

    check_gpus(processes, torch.cuda.device_count())


def options(processes: int) -> list[str]:
    """What torchrun is told, several machines included."""
    env = os.environ.get
    address, port = env('MASTER_ADDR', '127.0.0.1'), env('PORT', '29500')
    told = ['--nnodes', env('NNODES', '1'), '--nproc-per-node', str(processes)]
    told += ['--max-restarts', env('MAX_RESTARTS', '0'), '--rdzv-backend', 'c10d']
    told += ['--rdzv-id', f'gcvit_mm_{port}', '--rdzv-endpoint', f'{address}:{port}']
    if env('NODE_RANK', '0') != '0':
        return [*told, '--rdzv-conf', 'is_host=false']
    # The other machines are told this address, and not a name that they may not know.
    return [*told, '--local-addr', address, '--rdzv-conf', 'is_host=true']

"""Behind ``dist_train`` and ``dist_test``: start a tool in several processes, by torchrun."""

import os
import sys
import time
from pathlib import Path


def start(script: str, before: int, usage: str) -> None:
    """Become torchrun, as the command line asks for.

    Args:
        script: Name of the tool.
        before: How many of its arguments stand before the number of processes.
        usage: What to say where that number is missing.
    """
    first, rest = sys.argv[1 : before + 1], sys.argv[before + 1 :]
    if not rest or not rest[0].isdecimal() or not int(rest[0]):
        sys.exit(f'usage: {usage}')
    processes, *rest = rest
    check(int(processes))
    # Processes that are started again go on from the checkpoints of this run.
    os.environ['GCVIT_MM_STARTED'] = time.strftime('%Y%m%d_%H%M%S')
    # torchrun would give them the addresses of the processes that died, which it keeps in a store.
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    tool = Path(__file__).with_name(script)
    command = [*options(processes), str(tool), *first, *rest, '--launcher', 'pytorch']

    from torch.distributed.run import main as torchrun

    torchrun(command)


def check(processes: int) -> None:
    """Refuse what the machine lacks before processes start: torchrun's message would bury ours."""
    import torch

    from gcvit_mm.engine.launch import check_gpus, run

    run(lambda: check_gpus(processes, torch.cuda.device_count()))


def options(processes: str) -> list[str]:
    """What torchrun is told, several machines included."""
    env = os.environ.get
    address, port = env('MASTER_ADDR', '127.0.0.1'), env('PORT', '29500')
    told = ['--nnodes', env('NNODES', '1'), '--nproc-per-node', processes]
    told += ['--max-restarts', env('MAX_RESTARTS', '0'), '--rdzv-backend', 'c10d']
    told += ['--rdzv-id', f'gcvit_mm_{port}', '--rdzv-endpoint', f'{address}:{port}']
    if env('NODE_RANK', '0') != '0':
        return [*told, '--rdzv-conf', 'is_host=false']
    # The other machines are told this address, and not a name that they may not know.
    return [*told, '--local-addr', address, '--rdzv-conf', 'is_host=true']

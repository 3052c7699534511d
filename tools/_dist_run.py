"""Starts a tool in several processes by torchrun, for ``dist_train`` and ``dist_test``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _package  # noqa: F401

from gcvit_mm.cli import run

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import PContext


SAVING = 3600
"""Seconds that processes have for saving after a signal; clusters kill them earlier."""


def start(script: str, description: str, *files: str) -> None:
    """Run torchrun with the arguments of the command line.

    Args:
        script: Name of the tool.
        description: Description of the command for ``--help``.
        files: Names of the arguments before the number of processes.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog='For several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT.',
    )
    for name in files:
        parser.add_argument(name)
    parser.add_argument('gpus', type=int, help='number of processes on this machine')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=f'more arguments of {script}')
    args = parser.parse_args()
    if args.gpus < 1:
        parser.error(f'gpus is {args.gpus}: pass 1 or more')
    run(lambda: check(args.gpus))
    # Restarted processes resume from checkpoints of this run only.
    os.environ['GCVIT_MM_STARTED'] = time.strftime('%Y%m%d_%H%M%S')
    # torchrun would give restarted processes the addresses of dead ones from its store.
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    tool = [str(Path(__file__).with_name(script)), *(vars(args)[name] for name in files)]

    from torch.distributed.elastic.multiprocessing import PContext, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    ended: list[int] = []
    close = PContext.close

    def close_and_note(context: PContext, death_sig: Any = None, timeout: int = 30) -> None:
        if isinstance(sys.exception(), SignalException):
            pass_on_signals(context)
            timeout = SAVING
        close(context, death_sig, timeout)
        ended[:] = [handler.proc.returncode for handler in context.subprocess_handlers.values()]

    PContext.close = close_and_note
    try:
        torchrun([*options(args.gpus), *tool, *args.arguments, '--launcher', 'pytorch'])
    except ChildFailedError as error:  # the process has printed the reason, and torchrun its rank
        sys.exit(exit_status([error.get_first_failure()[1].exitcode]))
    except SignalException:
        # Processes that have saved a checkpoint end with status 0, and 130 after Ctrl-C.
        sys.exit(exit_status(ended))


def exit_status(codes: list[int]) -> int:
    """The first failure of processes as the exit status of a shell."""
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def pass_on_signals(context: PContext) -> None:
    """Pass further signals on to processes that are ending, instead of leaving them behind."""

    def pass_on(number: int, _: Any) -> None:
        for process in context.pids().values():
            with suppress(ProcessLookupError):
                os.killpg(process, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)


def check(processes: int) -> None:
    """Check the number of GPUs before torchrun starts, as its own messages would hide the error."""
    import torch

    from gcvit_mm.engine.distributed import check_gpus

    check_gpus(processes, torch.cuda.device_count())


def options(processes: int) -> list[str]:
    """The options of torchrun, for one or several machines."""
    env = os.environ.get
    address, port = env('MASTER_ADDR', '127.0.0.1'), env('PORT', '29500')
    shared = ['--nnodes', env('NNODES', '1'), '--nproc-per-node', str(processes)]
    shared += ['--max-restarts', env('MAX_RESTARTS', '0'), '--rdzv-backend', 'c10d']
    shared += ['--rdzv-id', f'gcvit_mm_{port}', '--rdzv-endpoint', f'{address}:{port}']
    if env('NODE_RANK', '0') != '0':
        return [*shared, '--rdzv-conf', 'is_host=false']
    # Other machines get this address instead of a host name that they may not resolve.
    return [*shared, '--local-addr', address, '--rdzv-conf', 'is_host=true']

"""Say how much memory and communication a training step of a config takes on several GPUs.

Nothing runs: the figures are computed (docs/scaling.md says how). Activations are not among them;
tools/benchmark.py measures them. MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import _package  # noqa: F401

from gcvit_mm.choices import FSDP_UNITS
from gcvit_mm.cli import add_config_arguments, run
from gcvit_mm.errors import UserError

if TYPE_CHECKING:
    from gcvit_mm.benchmark.multi_gpu import Links, Memory, Traffic, Training

Rows = list[list[str]]
PARTS = {
    'parameters': 'parameters',
    'gradients': 'gradients',
    'optimizer': 'optimizer',
    'buckets': 'buckets',
    'gathered': 'gathered',
    'ema': 'EMA',
    'half': '16-bit copies',
    'buffers': 'buffers',
    'total': 'total',
}
"""Attributes of ``Memory`` and their titles."""


def parse_args() -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    add_config_arguments(parser)
    parser.add_argument(
        '--gpus', nargs='+', type=int, default=[1, 8, 16, 64], metavar='N', help='numbers of GPUs'
    )
    parser.add_argument('--gpus-per-node', type=int, default=8, metavar='N')
    parser.add_argument(
        '--link-gbps', type=float, metavar='X', help='speed of every link, in Gbit/s, one way'
    )
    parser.add_argument(
        '--intra-link-gbps', type=float, metavar='X', help='of a GPU to others of its node'
    )
    parser.add_argument(
        '--node-link-gbps', type=float, metavar='X', help='of a node to another, all cards together'
    )
    parser.add_argument(
        '--step-ms',
        type=float,
        metavar='T',
        help='measured time of a forward and a backward pass on one GPU: adds the efficiency',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, as of tools/train.py')
    parser.add_argument(
        '--fsdp-units',
        nargs='+',
        default=FSDP_UNITS,
        metavar='CLASS',
        help=f'classes that FSDP shards each by itself (default: {" ".join(FSDP_UNITS)})',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_positive(args)
    check_links(args)
    from gcvit_mm.run_config import load_config

    with redirect_stdout(sys.stderr):  # the packages print; stdout is for the tables
        cfg = load_config(args)
        from mmengine.logging import MMLogger

        from gcvit_mm.benchmark.multi_gpu import read_training

        MMLogger.get_current_instance().setLevel('WARNING')
        training = read_training(cfg, amp=args.amp, units=args.fsdp_units)
    links = links_of(args)
    print(heading(training), end='\n\n')
    print('Memory of each GPU without activations, MB', end='\n\n')
    print_table(memory_table(training, args.gpus))
    print('\nSent by each GPU in a step', end='\n\n')
    print_table(traffic_table(training, args.gpus, links, args.step_ms))
    print(f'\n{advice(args, training)}')


def check_links(args: argparse.Namespace) -> None:
    if args.link_gbps is None and None in (args.intra_link_gbps, args.node_link_gbps):
        raise UserError(
            'the speed of the links is missing: give --link-gbps, or both --intra-link-gbps and '
            '--node-link-gbps'
        )


def links_of(args: argparse.Namespace) -> Links:
    from gcvit_mm.benchmark.multi_gpu import Links

    within = args.link_gbps if args.intra_link_gbps is None else args.intra_link_gbps
    between = args.link_gbps if args.node_link_gbps is None else args.node_link_gbps
    return Links(within, between, args.gpus_per_node)


def check_positive(args: argparse.Namespace) -> None:
    names = 'gpus_per_node', 'link_gbps', 'intra_link_gbps', 'node_link_gbps', 'step_ms'
    given = [('gpus', gpus) for gpus in args.gpus] + [(name, getattr(args, name)) for name in names]
    for name, value in given:
        if value is not None and not 0 < value < float('inf'):
            raise UserError(f'--{name.replace("_", "-")} {value}: it must be above 0')


def heading(training: Training) -> str:
    """What the numbers of GPUs do not change."""
    return (
        f'{training.parameters:,} parameters, {training.trainable:,} of them trained by '
        f'{training.optimizer}; {training.batch} images a GPU, {training.accumulation} accumulated'
    )


def memory_table(training: Training, numbers: list[int]) -> Rows:
    """A row of titles, and two for each number of GPUs; parts that are nowhere are left out."""
    from gcvit_mm.benchmark.multi_gpu import ddp_memory, fsdp_memory

    rows = [
        (gpus, name, memory)
        for gpus in numbers
        for name, memory in (
            ('DDP', ddp_memory(training, gpus)),
            ('FSDP', fsdp_memory(training, gpus)),
        )
    ]
    parts = [part for part in PARTS if any(getattr(memory, part) for *_, memory in rows)]
    return [
        ['GPUs', '', 'images/step', *(PARTS[part] for part in parts)],
        *(
            [str(gpus), name, str(training.images(gpus)), *memory_cells(memory, parts)]
            for gpus, name, memory in rows
        ),
    ]


def memory_cells(memory: Memory, parts: list[str]) -> list[str]:
    return [megabytes(getattr(memory, part)) for part in parts]


def traffic_table(
    training: Training, numbers: list[int], links: Links, step_ms: float | None
) -> Rows:
    """A row of titles, and two for each number of GPUs; efficiency where the time is known."""
    from gcvit_mm.benchmark.multi_gpu import ddp_traffic, efficiency, fsdp_traffic

    titles = ['GPUs', '', 'nodes', 'MB', 'Gbit/s', 'ms']
    if step_ms:
        titles += ['efficiency', 'overlapped']
    rows = []
    for gpus in numbers:
        for name, traffic_of in (('DDP', ddp_traffic), ('FSDP', fsdp_traffic)):
            traffic = traffic_of(training, gpus)
            cells = [str(gpus), name, str(links.nodes(gpus)), *traffic_cells(traffic, links, gpus)]
            if step_ms:
                cells += [
                    f'{efficiency(traffic, links, gpus, step_ms / 1e3, overlap=overlap):.2f}'
                    for overlap in (False, True)
                ]
            rows.append(cells)
    return [titles, *rows]


def traffic_cells(traffic: Traffic, links: Links, gpus: int) -> list[str]:
    sent = traffic.total
    milliseconds = 1e3 * links.seconds(sent, gpus)
    return [megabytes(sent), f'{links.slowest(gpus):g}', f'{milliseconds:.1f}']


def megabytes(size: float) -> str:
    return f'{size / 1e6:.1f}'


def advice(args: argparse.Namespace, training: Training) -> str:
    """What is to be measured, and how."""
    changes = ((k, v) for k, v in args.cfg_options.items() if k.startswith('model.'))
    model = args.config + ''.join(f':{key}={value}'.replace(' ', '') for key, value in changes)
    dtype = ' --dtype bfloat16' if training.half else ''
    return (
        'Activations are measured, not computed: add optimizer, buckets and EMA to the peak MB of\n'
        f'python tools/benchmark.py {shlex.quote(model)} --mode training '
        f'--batch {training.batch} --size HxW{dtype}'
    )


def print_table(rows: Rows) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    titles, *body = rows
    printed = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        printed.add_column(title, justify='right' if title else 'left')
    for cells in body:
        printed.add_row(*cells)
    console = Console(highlight=False)
    if not console.is_terminal and 'COLUMNS' not in os.environ:
        console.width = 10_000  # in files, each row is to be on one line
    console.print(printed)


if __name__ == '__main__':
    run(main)

"""Compute the memory and communication of a training step of a config on several GPUs.

No training runs; docs/scaling.md describes the computation. 1 MB is 10^6 bytes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import _package  # noqa: F401
from benchmark import print_table, size

from gcvit_mm.choices import FSDP_UNITS
from gcvit_mm.cli import add_config_arguments, run
from gcvit_mm.errors import UserError

if TYPE_CHECKING:
    from gcvit_mm.benchmark.multi_gpu import Links, Training

Rows = list[list[str]]
WRAPPERS = {'DDP': False, 'FSDP': True}
"""Parallel wrappers of the model, and whether they shard it."""


def parse_args() -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    add_config_arguments(parser)
    parser.add_argument(
        '--gpus', nargs='+', type=int, default=[1, 8, 16, 64], metavar='N', help='numbers of GPUs'
    )
    parser.add_argument('--gpus-per-node', type=int, default=8, metavar='N')
    speeds = {
        '--link-gbps': 'bandwidth of all links, in Gbit/s per direction',
        '--intra-link-gbps': 'bandwidth between GPUs of a node',
        '--node-link-gbps': 'bandwidth between nodes, of all network cards of a node together',
        '--step-ms': 'measured time of a forward and a backward pass on one GPU; adds efficiencies',
    }
    for option, text in speeds.items():
        parser.add_argument(option, type=float, metavar='X', help=text)
    parser.add_argument(
        '--size',
        type=size,
        metavar='HxW',
        help='size of the images; adds activations of backbone and neck, which takes a minute',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, as in tools/train.py')
    parser.add_argument(
        '--fsdp-units',
        nargs='+',
        default=FSDP_UNITS,
        metavar='CLASS',
        help=f'classes of modules that FSDP shards separately; default: {" ".join(FSDP_UNITS)}',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_positive(args)
    within = args.link_gbps if args.intra_link_gbps is None else args.intra_link_gbps
    between = args.link_gbps if args.node_link_gbps is None else args.node_link_gbps
    if within is None or between is None:
        raise UserError(
            'the bandwidth of the links is missing: give --link-gbps, or both --intra-link-gbps '
            'and --node-link-gbps'
        )
    from gcvit_mm.run_config import load_config

    with redirect_stdout(sys.stderr):  # the mm packages print; stdout is for the tables
        cfg = load_config(args)
        from mmengine.logging import MMLogger

        from gcvit_mm.benchmark.multi_gpu import Links, read_training

        MMLogger.get_current_instance().setLevel('WARNING')
        training = read_training(cfg, amp=args.amp, units=args.fsdp_units, size=args.size)
    print(
        f'{training.parameters:,} parameters, {training.trainable:,} trainable, '
        f'{training.optimizer}; batch size {training.batch} per GPU, gradient accumulation over '
        f'{training.accumulation} batch{"es" * (training.accumulation != 1)}'
    )
    print(f'\nMemory of each GPU {"with" if args.size else "without"} activations, MB\n')
    print_table(memory_table(training, args.gpus), left=(1,))
    print('\nCommunication of each GPU per optimizer step\n')
    links = Links(within, between, args.gpus_per_node)
    print_table(traffic_table(training, args.gpus, links, args.step_ms), left=(1,))
    print(f'\n{advice(args, training)}')


def check_positive(args: argparse.Namespace) -> None:
    names = 'gpus_per_node', 'link_gbps', 'intra_link_gbps', 'node_link_gbps', 'step_ms'
    options = [('gpus', n) for n in args.gpus] + [(name, getattr(args, name)) for name in names]
    for name, value in options:
        if value is not None and not 0 < value < float('inf'):
            raise UserError(f'--{name.replace("_", "-")} {value}: it must be above 0')


def memory_table(training: Training, numbers: list[int]) -> Rows:
    """Build a header and two rows for each number of GPUs, without columns of zeros."""
    rows = [
        (gpus, name, training.memory(gpus, sharded=sharded))
        for gpus in numbers
        for name, sharded in WRAPPERS.items()
    ]
    parts = [part for part in rows[0][2] if any(memory[part] for *_, memory in rows)]
    images = training.batch * training.accumulation
    return [
        ['GPUs', '', 'images/step', *parts],
        *(
            [str(gpus), name, str(images * gpus), *(f'{memory[x] / 1e6:.1f}' for x in parts)]
            for gpus, name, memory in rows
        ),
    ]


def traffic_table(
    training: Training, numbers: list[int], links: Links, step_ms: float | None
) -> Rows:
    """Build a header and two rows for each number of GPUs, with efficiencies given ``step_ms``."""
    from gcvit_mm.benchmark.multi_gpu import efficiency

    titles = ['GPUs', '', 'nodes', 'MB', 'Gbit/s', 'ms']
    rows = [titles + ['efficiency', 'overlapped'] * bool(step_ms)]
    for gpus in numbers:
        for name, sharded in WRAPPERS.items():
            traffic = training.traffic(gpus, sharded=sharded)
            sent, ms = traffic.total / 1e6, 1e3 * links.seconds(traffic.total, gpus)
            speed = f'{links.slowest(gpus):g}'
            cells = [str(gpus), name, str(links.nodes(gpus)), f'{sent:.1f}', speed, f'{ms:.1f}']
            for overlap in (False, True) if step_ms else ():
                share = efficiency(traffic, links, gpus, step_ms / 1e3, overlap=overlap)
                cells.append(f'{share:.2f}')
            rows.append(cells)
    return rows


def advice(args: argparse.Namespace, training: Training) -> str:
    """Describe what to measure, and how."""
    changes = ((k, v) for k, v in args.cfg_options.items() if k.startswith('model.'))
    model = args.config + ''.join(f':{key}={value}'.replace(' ', '') for key, value in changes)
    dtype = ' --dtype bfloat16' if training.half else ''
    size = 'x'.join(map(str, args.size)) if args.size else 'HxW'
    return (
        f'Activations{" of heads" * bool(args.size)} are not computed: add optimizer, buckets and '
        'EMA to the peak MB of\n'
        f'python tools/benchmark.py {shlex.quote(model)} --mode training '
        f'--batch {training.batch} --size {size}{dtype}'
    )


if __name__ == '__main__':
    run(main)

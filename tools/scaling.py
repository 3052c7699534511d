"""Compute the memory and communication of a training step of a config on several GPUs.

No training runs; docs/scaling.md describes the computation. 1 MB is 10^6 bytes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import redirect_stdout

import _package  # noqa: F401
from benchmark import print_table, size

from gcvit_mm.choices import FSDP_UNITS
from gcvit_mm.cli import add_config_arguments, run
from gcvit_mm.errors import UserError


def parse_args() -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    add_config_arguments(parser)
    parser.add_argument(
        '--gpus', nargs='+', type=int, default=[1, 8, 16, 64], metavar='N', help='numbers of GPUs'
    )
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
    if min(args.gpus) < 1:
        raise UserError(f'--gpus {min(args.gpus)}: it must be above 0')
    from gcvit_mm.run_config import load_config

    with redirect_stdout(sys.stderr):  # the mm packages print; stdout is for the table
        cfg = load_config(args)
        from mmengine.logging import MMLogger

        from gcvit_mm.benchmark.multi_gpu import read_training

        MMLogger.get_current_instance().setLevel('WARNING')
        training = read_training(cfg, amp=args.amp, units=args.fsdp_units, size=args.size)
    print(
        f'{training.parameters:,} parameters, {training.trainable:,} trainable, '
        f'{training.optimizer}\n\nMB of memory, and MB sent, of each GPU per optimizer step\n'
    )
    rows = [
        (gpus, name, training.memory(gpus, sharded=sharded), training.sent(gpus, sharded=sharded))
        for gpus in args.gpus
        for name, sharded in (('DDP', False), ('FSDP', True))
    ]
    parts = [part for part in rows[0][2] if any(memory[part] for _, _, memory, _ in rows)]
    table = [['GPUs', '', 'images/step', *parts, 'sent']]
    for gpus, name, memory, sent in rows:
        sizes = [f'{x / 1e6:.1f}' for x in (*(memory[part] for part in parts), sent)]
        table.append([str(gpus), name, str(training.images * gpus), *sizes])
    print_table(table, left=(1,))
    changes = ((k, v) for k, v in args.cfg_options.items() if k.startswith('model.'))
    model = args.config + ''.join(f':{key}={value}'.replace(' ', '') for key, value in changes)
    dtype = ' --dtype bfloat16' if training.whole['16-bit copies'] else ''
    size = 'x'.join(map(str, args.size)) if args.size else 'HxW'
    print(
        f'\nActivations{" of heads" * bool(args.size)} are not computed: add optimizer, buckets '
        'and EMA to the peak MB of\n'
        f'python tools/benchmark.py {shlex.quote(model)} --mode training '
        f'--batch {training.images // training.passes} --size {size}{dtype}'
    )


if __name__ == '__main__':
    run(main)

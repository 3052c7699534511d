"""Download published ImageNet weights, which configs refer to as gcvit://NAME."""

import argparse
from pathlib import Path

import _package  # noqa: F401

from gcvit_mm.cli import run
from gcvit_mm.weights.hub import default_folder, fetch, find, published


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='tiny, base, large_21k_384, ...')
    parser.add_argument(
        '--dir',
        type=Path,
        default=default_folder(),
        help='folder to write to (default: %(default)s); configs read from GCVIT_MM_CHECKPOINTS, '
        'or from checkpoints',
    )
    parser.add_argument('--list', action='store_true', help='list all and the downloaded weights')
    args = parser.parse_args()
    if not (args.names or args.list):
        parser.error('pass the NAME of weights, or --list')
    return args


def main() -> None:
    args = parse_args()
    if args.list:
        print_table(args.dir)
    for weights in [find(name) for name in args.names]:
        print(f'{weights.name}: {fetch(weights, args.dir.absolute())}')


def print_table(folder: Path) -> None:
    row = '{:<24} {:>6} {:<11} {:>5} {:>8}  {:<16} {:<5} {}'
    print(row.format('name', 'pixels', 'windows', 'top-1', 'size', 'licence', 'there', 'file'))
    for weights in published().values():
        print(
            row.format(
                weights.name,
                weights.resolution,
                ' '.join(map(str, weights.windows)),
                weights.top1,
                weights.size,
                weights.licence,
                'yes' if (folder / weights.file).is_file() else '-',
                weights.file,
            )
        )
    print(f'there: in {folder}')


if __name__ == '__main__':
    run(main)

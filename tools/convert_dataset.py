"""Bring a folder of labels in another format (COCO, YOLO, VOC, masks ...) into the own form."""

import argparse
import sys
from contextlib import redirect_stdout

import _package  # noqa: F401

from gcvit_mm.choices import LABEL_FORMATS, LABEL_WRITERS, TASKS
from gcvit_mm.cli import run
from gcvit_mm.errors import UserError, printable


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='SRC', help='folder of images and labels; not changed')
    parser.add_argument('dest', metavar='DST', nargs='?', help='output; default: SRC/gcvit_mm')
    parser.add_argument('--format', choices=LABEL_FORMATS, help='default: it is recognised')
    parser.add_argument('--task', choices=TASKS, help='default: what the labels are for')
    parser.add_argument('--to', choices=LABEL_WRITERS, help='write for another tool instead')
    help = 'share of validation images, if SRC has no split; default: 0.2'
    parser.add_argument('--val', type=float, default=0.2, metavar='SHARE', help=help)
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='seed of that split')
    parser.add_argument('--copy', action='store_true', help='copy the images, not refer to them')
    parser.add_argument('--tile', type=int, metavar='PX', help='cut images into tiles of this size')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.to and not args.dest:
        raise UserError('--to needs a folder to write to: pass SRC DST')
    if args.to and args.tile is not None:
        raise UserError('--tile is for the own form: leave out --to')
    with redirect_stdout(sys.stderr):  # packages print at import, but stdout is for the report
        from gcvit_mm.datasets.check import print_reports
        from gcvit_mm.formats import bring_in, export

    options = {key: vars(args)[key] for key in ('format', 'task', 'val', 'seed', 'copy')}
    if args.to:
        reports, dest = export(args.source, args.dest, args.to, **options), args.dest
    else:
        dataset = bring_in(args.source, args.dest, tile=args.tile, **options)
        reports, dest = dataset.reports, dataset.root
    print_reports(reports)
    print(f'written: {printable(str(dest))}')


if __name__ == '__main__':
    run(main)

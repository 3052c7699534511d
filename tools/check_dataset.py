"""Check the images and annotations that a config reads, before training on them."""

import argparse
import sys
from contextlib import redirect_stdout

from gcvit_mm.datasets.check import (
    SPLITS,
    check_datasets,
    print_reports,
    write_reports,
)
from gcvit_mm.engine.launch import OptionsAction, load_config, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Exit status: 1 where anything is an error, 0 otherwise.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='KEY=VALUE',
        help='settings that override the config, as for tools/train.py',
    )
    parser.add_argument(
        '--splits', nargs='+', choices=SPLITS, default=SPLITS, help='which data; default: all'
    )
    parser.add_argument('--out', metavar='FILE.json', help='write everything that was found')
    parser.set_defaults(work_dir=None, launcher='none')  # what load_config takes besides
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with redirect_stdout(sys.stderr):  # the packages print at import; stdout is for the report
        reports = check_datasets(load_config(args), args.splits)
    print_reports(reports)
    if args.out:
        write_reports(reports, args.out)
    if any(report.count('error') for report in reports):
        sys.exit(1)


if __name__ == '__main__':
    run(main)

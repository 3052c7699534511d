"""Check the images and annotations of a config before training."""

import argparse
import os
import sys
from contextlib import redirect_stdout

import _package  # noqa: F401

from gcvit_mm.choices import SPLITS
from gcvit_mm.cli import add_config_arguments, run
from gcvit_mm.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Exit status: 1 if there are errors, 0 otherwise.'
    )
    add_config_arguments(parser)
    parser.add_argument(
        '--splits', nargs='+', choices=SPLITS, default=SPLITS, help='splits to check; default: all'
    )
    parser.add_argument('--out', metavar='FILE.json', help='write the full reports to a file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if os.path.isdir(args.config):
        from gcvit_mm.formats import describe

        raise UserError(describe(args.config))
    from gcvit_mm.run_config import load_config

    cfg = load_config(args, import_modules=False)
    with redirect_stdout(sys.stderr):  # packages print at import, but stdout is for the report
        from gcvit_mm.datasets.check import check_datasets, print_reports, write_reports
        from gcvit_mm.datasets.check.classes import import_datasets

        import_datasets(cfg)
        reports = check_datasets(cfg, args.splits)
    print_reports(reports)
    if args.out:
        write_reports(reports, args.out)
    if any(report.count('error') for report in reports):
        sys.exit(1)


if __name__ == '__main__':
    run(main)

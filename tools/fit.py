"""Train and evaluate a model on a folder of images and labels in any known format.

Recognises the labels, checks them, decides on a model, image size, augmentation, batch, learning
rate and length, and writes these with their reasons to WORK_DIR.py, an ordinary config. Then it
trains, tests and writes a report. The same command resumes. Each option overrides a decision.
"""

import argparse
from dataclasses import fields

import _package  # noqa: F401

from gcvit_mm.cli import run
from gcvit_mm.fitting.options import Options, flag_of


def parse_args() -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument('folder', help='folder with images and labels')
    parser.add_argument('--work-dir', help='default: work_dirs/FOLDER')
    for each in fields(Options):
        more = dict(each.metadata)
        parser.add_argument(
            more.pop('flag', flag_of(each)), dest=each.name, default=each.default, **more
        )
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    from gcvit_mm.fitting.run import fit

    fit(args.pop('folder'), args.pop('work_dir'), **args)


if __name__ == '__main__':
    run(main)

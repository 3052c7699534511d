"""Write an HTML report of a run: its curves, metrics, best and worst images, and settings."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import _package  # noqa: F401

from gcvit_mm.cli import run as run_main
from gcvit_mm.errors import UserError

if TYPE_CHECKING:
    from gcvit_mm.work_dir import Run

TEST = Path(__file__).with_name('test.py')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='work directory of a run')
    parser.add_argument(
        'other', nargs='?', help='another one, whose metrics on the same images are compared'
    )
    parser.add_argument('--charts', metavar='FOLDER', help='write the charts as SVG files, too')
    parser.add_argument('--out', metavar='FILE.html', help='default: WORK_DIR/report.html')
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        '--predictions',
        metavar='PREFIX',
        help='PREFIX of tools/test.py --out; default: the newest predictions in WORK_DIR',
    )
    source.add_argument(
        '--checkpoint',
        help='checkpoint to evaluate by tools/test.py; default, if WORK_DIR has no predictions: '
        'its best checkpoint, or else its newest',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with redirect_stdout(sys.stderr):  # the mm packages print; stdout is for the result
        out, notes = report(args)
    for note in notes:
        print(f'note: {note}')
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB')


def report(args: argparse.Namespace) -> tuple[Path, list[str]]:
    from gcvit_mm.work_dir import read_run

    run, notes, other = read_run(args.work_dir), [], None
    from gcvit_mm.report.write import write_report

    prefix = find_prefix(run, args.predictions, args.checkpoint, notes)
    if args.other:
        second = read_run(args.other)
        found = find_prefix(second, None, None, notes)
        if found is None or prefix is None:
            raise UserError(f'a comparison needs predictions of both trainings: {notes[-1]}')
        other = second, found
    out = Path(args.out or run.folder / 'report.html')
    return out, write_report(run, out, prefix, notes, other, args.charts)


def find_prefix(
    run: Run, prefix: str | None, checkpoint: str | None, notes: list[str]
) -> str | None:
    """Find or make the predictions of a run, and note what is wrong."""
    from gcvit_mm.datasets.preflight import check_data
    from gcvit_mm.work_dir import find_model, find_predictions

    if checkpoint:
        return predict(run, checkpoint)
    if prefix is None:
        prefix = find_predictions(run.folder)
        notes += outdated(run, prefix)
    if prefix is None:
        try:
            check_data(run.cfg, ('test_dataloader',))
            checkpoint = find_model(run.folder)[1]
        except UserError as error:
            notes.append(f'There are no predictions, and the model cannot be evaluated: {error}')
        else:
            prefix = predict(run, checkpoint)
    return prefix


def outdated(run: Run, prefix: str | None) -> list[str]:
    """Return a note if a checkpoint is newer than the predictions."""
    from gcvit_mm.work_dir import predicted_at

    checkpoints = sorted(run.folder.glob('*.pth'), key=os.path.getmtime)
    if prefix is None or not checkpoints:
        return []
    if checkpoints[-1].stat().st_mtime <= predicted_at(prefix):
        return []
    return [
        f'The predictions {prefix}.* are older than {checkpoints[-1]}: give --checkpoint to '
        'evaluate it'
    ]


def predict(run: Run, checkpoint: str) -> str:
    """Evaluate a checkpoint by ``tools/test.py``, and return the PREFIX of its predictions."""
    prefix = str(run.folder / 'predictions')
    print(f'evaluating {checkpoint}')
    command = [str(run.config_file), checkpoint, '--work-dir', str(run.folder), '--out', prefix]
    test = subprocess.run([sys.executable, str(TEST), *command], stdout=sys.stderr, check=False)
    if test.returncode:
        raise UserError('tools/test.py failed, see above')
    return prefix


if __name__ == '__main__':
    run_main(main)

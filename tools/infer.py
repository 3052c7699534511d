"""Predict on images, folders of images, and videos."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _package  # noqa: F401

from gcvit_mm.choices import FORMATS
from gcvit_mm.cli import add_model_arguments, check_model, locked, run
from gcvit_mm.errors import UserError
from gcvit_mm.inference.inputs import Input, find_inputs

if TYPE_CHECKING:
    from gcvit_mm import Predictor
    from gcvit_mm.inference.results import Results


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image, video, folder (searched recursively) or pattern',
    )
    parser.add_argument(
        '--out',
        required=True,
        metavar='DIR',
        help='folder for the results; an interrupted run resumes from it',
    )
    parser.add_argument(
        '--format',
        nargs='+',
        choices=sorted({name for names in FORMATS.values() for name in names}),
        help='output formats: pictures (overlay), COCO annotations of a detector (coco), label '
        'maps of a segmenter (png), a table (csv); default: all formats of the task',
    )
    parser.add_argument(
        '--score',
        type=float,
        default=0.3,
        help='minimum score of objects in pictures and in the table; default: 0.3',
    )
    parser.add_argument(
        '--tile', type=int, metavar='PX', help='split larger images into tiles of this size'
    )
    parser.add_argument(
        '--overlap',
        type=int,
        metavar='PX',
        help='minimum overlap of neighbouring tiles; default: a quarter of a tile',
    )
    parser.add_argument(
        '--batch-size', type=int, help='images per batch; default: up to 8, as fits the device'
    )
    parser.add_argument('--device', help='cpu, cuda:1, ...; default: a GPU if there is one')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    apply_options(args)
    check_model(args)
    root, inputs = find_inputs(args.inputs)
    from gcvit_mm import Predictor
    from gcvit_mm.inference.results import Results
    from gcvit_mm.inference.run import Run, finish

    predictor = Predictor(args.model, args.checkpoint, args.device, args.tile, args.overlap)
    formats = formats_of(predictor.task, args.format)
    try:
        with locked(args.out):
            results = Results(args.out, settings(args, predictor, formats, root))
            todo = [item for item in inputs if item.file not in results.done]
            failed = Run(predictor, results, formats, args.score, args.batch_size).do(todo)
            finish(results, predictor, formats, args.score, failed)
    except OSError as error:
        raise UserError(f'--out {args.out}: {error}') from error
    report(results, inputs, todo, failed)


def apply_options(args: argparse.Namespace) -> None:
    """Check the options, and apply those that affect the whole process."""
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # failed.txt lists damaged videos
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f'--batch-size {args.batch_size}: it must be at least 1')
    if args.overlap is not None and args.tile is None:
        raise UserError('--overlap needs --tile: give the size of the tiles')
    if args.tile:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None  # tiles are for images above Pillow's limit


def formats_of(task: str, requested: list[str] | None) -> list[str]:
    invalid = [name for name in requested or () if name not in FORMATS[task]]
    if invalid:
        raise UserError(f'--format {invalid[0]}: for {task}, choose {", ".join(FORMATS[task])}')
    return sorted(set(requested or FORMATS[task]))


def settings(
    args: argparse.Namespace, predictor: Predictor, formats: list[str], root: Path
) -> dict[str, Any]:
    """Return the settings that the results depend on, and an interrupted run resumes with."""
    from gcvit_mm.config import model_config, test_dataset

    model, pipeline = model_config(predictor.cfg), test_dataset(predictor.cfg).pipeline
    return dict(
        inputs=str(root),
        model=digest(repr((model, pipeline)).encode()),
        checkpoint=digest(Path(predictor.checkpoint).read_bytes()),
        formats=formats,
        score=args.score,
        tile=predictor.tile,
        overlap=predictor.overlap,
    )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def report(results: Results, inputs: list[Input], todo: list[Input], failed: list[str]) -> None:
    if len(todo) < len(inputs):
        print(f'{len(inputs) - len(todo)} of {len(inputs)} files were done before')
    if failed:
        message = f'{len(failed)} of {len(inputs)} files failed: see {results.folder}/failed.txt'
        if next(iter(results), None) is None:
            raise UserError(message)
        print(message)
    print(f'results of {len(inputs) - len(failed)} whole files in {results.folder}')


if __name__ == '__main__':
    run(main)

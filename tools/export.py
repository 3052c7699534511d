"""Export a model to a file that runs without this package: ONNX, OpenVINO, or PyTorch's ``.pt2``.

The file takes RGB images of any size and includes normalisation; for a detector also NMS. Boxes,
masks, maps and scores are compared with those of the model in PyTorch, and the file is kept only if
they match.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import _package  # noqa: F401

from gcvit_mm.cli import add_model_arguments, check_model, run
from gcvit_mm.errors import UserError

if TYPE_CHECKING:
    from gcvit_mm.export.files import Run
    from gcvit_mm.export.graph import ImageModel

REPEAT, SIZE = 10, (512, 512)
BESIDE = ('.json', '.png', '.py')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        '--out',
        required=True,
        type=Path,
        metavar='FILE',
        help='FILE.onnx, FILE.xml (OpenVINO) or FILE.pt2; FILE.json describes inputs and outputs',
    )
    parser.add_argument(
        '--what',
        choices=['model', 'features'],
        default='model',
        help='the whole model, or the feature maps of its backbone; default: model',
    )
    parser.add_argument(
        '--static',
        type=parse_size,
        metavar='HxW',
        help='support only this height and width, which is faster; default: any size',
    )
    parser.add_argument(
        '--argmax',
        action='store_true',
        help='for segmentation, return the class of each pixel instead of logits',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help='images for the comparison; default: those of the test data, or else generated ones',
    )
    parser.add_argument(
        '--precision',
        choices=['float32', 'float16', 'int8'],
        default='float32',
        help='of an ONNX file; int8 takes ranges of values from --images or the test data',
    )
    parser.add_argument(
        '--max-loss',
        type=float,
        default=1.0,
        metavar='POINTS',
        help='AP, mIoU or accuracy that float16 or int8 may cost; default: 1',
    )
    parser.add_argument(
        '--data',
        action='store_true',
        help='also compare AP, mIoU or accuracy, on the test data of the config',
    )
    parser.add_argument(
        '--random-weights', action='store_true', help='try the export without a checkpoint'
    )
    return parser.parse_args()


def parse_size(text: str) -> tuple[int, int]:
    """Parse height and width, such as ``512x640``."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is not HxW, such as 512x640')
    return int(match[1]), int(match[2])


def main() -> None:
    args = parse_args()
    if args.checkpoint and args.random_weights:
        raise UserError('--checkpoint and --random-weights exclude each other: pass only one')
    check_model(args)
    from gcvit_mm.export import precision, runner
    from gcvit_mm.export.build import build_graph
    from gcvit_mm.export.check import read_images
    from gcvit_mm.export.evaluation import Evaluation
    from gcvit_mm.export.files import check_graph, check_target, load, runtimes, write
    from gcvit_mm.export.graph import trace
    from gcvit_mm.export.proof import prove, prove_metrics
    from gcvit_mm.export.source import describe, load_source

    is_reduced = args.precision != 'float32'
    if not args.max_loss >= 0:
        raise UserError(f'--max-loss {args.max_loss}: pass a number of points from 0')
    if is_reduced and args.out.suffix != '.onnx':
        raise UserError(
            f'--precision {args.precision} needs --out FILE.onnx, which OpenVINO reads too'
        )
    check_target(args.out)
    source = load_source(args.model, args.checkpoint, args.random_weights)
    options = dict(features=args.what == 'features', argmax=args.argmax, size=args.static)
    graph = build_graph(source.model, source.task, **options)
    check_graph(args.out, graph)
    evaluation = None
    if args.data or is_reduced:
        evaluation = Evaluation(source, graph, args.max_loss if is_reduced else None)
    images = read_images(source.cfg, args.images)
    print('tracing the model, which takes minutes for large models', flush=True)
    program = trace(graph)
    about = describe(source, graph, program, options)
    with TemporaryDirectory(prefix=f'.{args.out.name}.', dir=args.out.parent) as folder:
        file = Path(folder, args.out.name)
        print(f'writing {args.out.name}', flush=True)
        write(program, file, about)
        execute = load(file)
        if file.suffix == '.onnx' and args.what == 'model':
            program_file = file.with_name(f'{file.name.replace(".", "_")}.py')
            program_file.write_text(runner.source(source.task, file.name))
        prove(graph, execute, images, file, about, None if is_reduced else evaluation)
        steps = {'PyTorch': graph.expected, **named(runtimes(file), 'float32')}
        if evaluation and is_reduced:
            many = read_images(source.cfg, args.images, precision.CALIBRATION)
            found = precision.reduce(file, args.precision, graph, many, evaluation, about)
            prove_metrics(evaluation, found, file, about)
            steps |= named(runtimes(file), args.precision)
        parts = [path for path in Path(folder).iterdir() if path.suffix not in BESIDE]
        size_mb = sum(path.stat().st_size for path in parts) / 1e6
        publish(Path(folder), args.out)
    print(f'{args.out}: {size_mb:.1f} MB')
    print_speed(graph, steps, images)


def publish(folder: Path, out: Path) -> None:
    """Move the files to the output folder, the main file last because it needs the others."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
        os.replace(path, out.with_name(path.name))


def named(runs: dict[str, Run], precision: str) -> dict[str, Run]:
    return {f'{name} {precision}': run for name, run in runs.items()}


def print_speed(graph: ImageModel, steps: dict[str, Callable], images: list) -> None:
    """Print the time per image of PyTorch and of the files in their runtimes."""
    import torch

    from gcvit_mm.export.check import speeds, stack

    size = graph.size or SIZE
    print(
        f'time per image of {size[0]}x{size[1]} (median of {REPEAT}, {torch.get_num_threads()} '
        'thread(s)):'
    )
    for name, seconds in speeds(steps, stack(images[:1], size, graph.channels), REPEAT).items():
        print(f'{name:>22} {seconds * 1e3:6.0f} ms')


if __name__ == '__main__':
    run(main)

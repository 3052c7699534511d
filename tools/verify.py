"""Compare an exported file with its model: boxes, masks, maps and classes.

It checks files that other tools made from an exported one, as the export checks its own. Put the
FILE.json of the export beside the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _package  # noqa: F401

from gcvit_mm.cli import add_model_arguments, check_model, run
from gcvit_mm.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', type=Path, help='the exported file')
    add_model_arguments(parser)
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help='images for the comparison; default: those of the test data, or else generated ones',
    )
    parser.add_argument(
        '--data',
        action='store_true',
        help='also compare AP, mIoU or accuracy, on the test data of the config',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_model(args)
    if not args.file.is_file():
        raise UserError(f'{args.file} is not a file: pass one that tools/export.py wrote')
    from gcvit_mm.export.build import build_graph
    from gcvit_mm.export.check import read_images
    from gcvit_mm.export.evaluation import Evaluation
    from gcvit_mm.export.files import description, load
    from gcvit_mm.export.proof import prove, prove_metrics
    from gcvit_mm.export.source import load_source

    about = description(args.file)
    source = load_source(args.model, args.checkpoint)
    graph = build_graph(source.model, source.task, **about['graph'])
    is_reduced = 'max_loss' in about
    evaluation = None
    if args.data or is_reduced:
        evaluation = Evaluation(source, graph, about.get('max_loss'))
    if evaluation and is_reduced:  # whose outputs differ: its metric counts
        prove_metrics(evaluation, evaluation(load(args.file)), args.file, about)
    else:
        images = read_images(source.cfg, args.images)
        prove(graph, load(args.file), images, args.file, about, evaluation)
    print(f'{args.file} computes what the model does')


if __name__ == '__main__':
    run(main)

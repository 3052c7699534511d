"""Draw the windows and the attention maps of each stage of a model for images."""

import argparse
from collections import Counter
from pathlib import Path

import _package  # noqa: F401

from gcvit_mm.cli import add_model_arguments, check_model, locked, run
from gcvit_mm.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument(
        '--out',
        metavar='DIR',
        default='work_dirs/attention',
        help='output folder; default: %(default)s',
    )
    parser.add_argument(
        '--point',
        type=_point,
        metavar='X,Y',
        help='query of the local attention, in pixels of the prepared image, as on the axes of '
        'the picture; default: the centre',
    )
    parser.add_argument('--device', help='cpu, cuda:1 and so on; default: a GPU if there is one')
    return parser.parse_args()


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(','))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r} is not X,Y') from error
    return x, y


def main() -> None:
    args = parse_args()
    files = _files(args.images, Path(args.out))
    check_model(args)
    from tqdm import tqdm

    from gcvit_mm import Predictor
    from gcvit_mm.drawing.attention_figure import attention_figure

    predictor = Predictor(args.model, args.checkpoint, args.device)
    with locked(args.out):
        for image, file in tqdm(files.items(), unit='image', disable=None):
            name = f'{Path(image).name} by {Path(predictor.checkpoint).name}'
            attention_figure(predictor, image, name, args.point).savefig(file)
    print(f'{len(files)} picture(s) in {args.out}')


def _files(images: list[str], folder: Path) -> dict[str, Path]:
    """Choose the output file of each image."""
    files = {image: folder / f'{Path(image).stem}.png' for image in images}
    for file, count in Counter(files.values()).items():
        if count > 1:
            raise UserError(f'{count} images have the output file {file}: rename them')
    return files


if __name__ == '__main__':
    run(main)

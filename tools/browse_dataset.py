"""Draw the model inputs of a config's data pipeline, with annotations, and list them on a page."""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _package  # noqa: F401

from gcvit_mm.choices import SPLITS
from gcvit_mm.cli import add_config_arguments, locked, run
from gcvit_mm.errors import UserError

if TYPE_CHECKING:
    from gcvit_mm.drawing.model_inputs import Feed

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{style}
div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.2rem }}
img {{ width: 100%; height: auto; display: block }}
figcaption {{ overflow-wrap: anywhere; margin-top: .3rem }}
</style>
<main>
<h1>{title}</h1>
<p>{about}</p>
<div>
{figures}
</div>
</main>
</html>
"""
FIGURE = """<figure>
<a href="{picture}"><img src="{picture}" alt="{name}" loading="lazy"></a>
<figcaption><b>{name}</b><br>{facts}</figcaption>
</figure>"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--split', choices=SPLITS, default='train', help='default: %(default)s')
    parser.add_argument(
        '--out', metavar='DIR', help='output folder; default: work_dirs/browse/<config>_<split>'
    )
    parser.add_argument(
        '-n', type=int, default=16, dest='count', help='number of pictures; default: %(default)s'
    )
    parser.add_argument(
        '--seed', type=int, help="seed of the training; default: the config's, or 0"
    )
    parser.add_argument(
        '--epoch', type=int, default=1, help='epoch of the training, from 1; default: %(default)s'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.count < 1 or args.epoch < 1:
        raise UserError('-n and --epoch must be at least 1')
    from gcvit_mm.run_config import load_config

    loader = f'{args.split}_dataloader'
    cfg = load_config(args, (loader,))
    if not cfg.get(loader):
        raise UserError(f'config {args.config} has no {loader}: choose another --split')
    import cv2
    from tqdm import tqdm

    from gcvit_mm.config import datasets_of
    from gcvit_mm.datasets.preflight import check_data
    from gcvit_mm.drawing.ground_truth import draw_truth
    from gcvit_mm.drawing.model_inputs import Feed
    from gcvit_mm.drawing.palette import class_colors, class_names

    check_data(cfg, (loader,))
    seed = args.seed if args.seed is not None else cfg.get('randomness', {}).get('seed') or 0
    name = Path(args.config).stem
    folder = Path(args.out or f'work_dirs/browse/{name}_{args.split}')
    with redirect_stdout(sys.stderr):  # the mm packages print while they read annotations
        feed = Feed(cfg, args.split, seed, args.epoch)
    classes, figures = class_names(feed.metainfo), []
    palette = class_colors(cfg, datasets_of(cfg[loader])[0], classes)
    shown = islice(samples(feed), args.count)
    with locked(folder):
        for number, (picture, sample) in enumerate(
            tqdm(shown, total=args.count, unit='picture', disable=None)
        ):
            file = f'{number:03d}_{Path(path_of(sample)).stem}.png'
            drawn = draw_truth(picture, sample, classes, palette, in_input=feed.trains)
            cv2.imwrite(str(folder / file), drawn[..., ::-1])
            facts = '<br>'.join(map(html.escape, describe(sample, picture, classes)))
            figures.append(
                FIGURE.format(
                    picture=html.escape(file, quote=True),
                    name=html.escape(path_of(sample), quote=True),
                    facts=facts,
                )
            )
        source = f'epoch {args.epoch}, seed {seed}' if feed.trains else 'evaluation'
        about = f'{len(figures)} of {len(feed.loader.dataset)} samples, {source}'
        title = html.escape(f'{name}: {args.split}')
        style = resources.files('gcvit_mm.report').joinpath('page.css').read_text()
        page = PAGE.format(title=title, about=about, style=style, figures='\n'.join(figures))
        (folder / 'index.html').write_text(page)
    print(f'{about}: {folder / "index.html"}')


def samples(feed: Feed) -> Iterator[tuple[Any, Any]]:
    """Yield pictures of the inputs and their data samples."""
    from gcvit_mm.drawing.model_inputs import to_pictures

    for inputs, data_samples in feed:
        yield from zip(to_pictures(feed.preprocessor, inputs), data_samples, strict=True)


def path_of(sample: Any) -> str:
    """Return the file of a sample; samples of synthetic data sets may have none."""
    return sample.metainfo.get('img_path') or 'image'


def describe(sample: Any, picture: Any, classes: Sequence[str]) -> list[str]:
    """Describe how the pipeline transformed a sample, as lines of text."""
    from gcvit_mm.drawing.ground_truth import describe_labels

    meta = sample.metainfo
    (height, width), (padded_height, padded_width) = meta['img_shape'][:2], picture.shape[:2]
    size = f'{width} x {height} px for the model'
    if (padded_height, padded_width) != (height, width):
        size += f', padded to {padded_width} x {padded_height}'
    if meta.get('ori_shape') is not None:
        size = f'{meta["ori_shape"][1]} x {meta["ori_shape"][0]} px in the file, {size}'
    lines = [size]
    if meta.get('scale_factor') is not None:
        lines.append('scale factor ' + ' x '.join(f'{x:.3g}' for x in meta['scale_factor'][:2]))
    lines.append(f'flip: {meta["flip_direction"] if meta.get("flip") else "none"}')
    if 'gt_instances' in sample:
        lines.append(f'objects: {len(sample.gt_instances)}')
    elif 'gt_sem_seg' in sample:
        ignored = (sample.gt_sem_seg.data >= len(classes)).float().mean()
        lines.append(f'ignored: {ignored:.0%}')
    else:
        lines.append(', '.join(describe_labels(sample, classes)))
    return lines


if __name__ == '__main__':
    run(main)

"""Convert a checkpoint from the official naming, timm's, TAO's or ours to ours or timm's.

``init_cfg`` reads official and timm's files without conversion. Convert for the configs of
classifiers, for files without pickles or training state, for timm, and for the detectors of
NVIDIA's TAO toolkit, whose config is written beside DST.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import _package  # noqa: F401

from gcvit_mm.choices import SUFFIXES
from gcvit_mm.cli import add_trust_argument, run
from gcvit_mm.errors import UserError, printable
from gcvit_mm.weights.hub import check_path, published, resolve

if TYPE_CHECKING:
    from gcvit_mm.weights.convert import Conversion


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'source',
        metavar='SRC',
        help="checkpoint: official (gcvit://NAME downloads one), timm's or ours",
    )
    parser.add_argument('target', metavar='DST', help=f'the file to write: {", ".join(SUFFIXES)}')
    parser.add_argument(
        '--task',
        choices=['classification', 'dense', 'detection'],
        required=True,
        help='classification: backbone and linear head; dense: only the backbone; detection: DINO '
        'or Deformable DETR of TAO',
    )
    parser.add_argument(
        '--to', choices=['gcvit_mm', 'timm'], default='gcvit_mm', help='naming to write'
    )
    parser.add_argument(
        '--ema', action='store_true', help='convert the moving average of the weights'
    )
    parser.add_argument(
        '--prefix', help="of the backbone's names, if SRC has more than one: model.backbone."
    )
    parser.add_argument(
        '--all-rows',
        action='store_true',
        help="detection: keep TAO's 91 rows of classes instead of COCO's 80 classes",
    )
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_path(args.source)
    from gcvit_mm.weights.convert import convert
    from gcvit_mm.weights.files import (
        check_target,
        read_checkpoint,
        state_dict_of,
        write_checkpoint,
    )

    source = resolve(args.source)
    check_target(args.target, source, args.force)
    if args.task == 'detection':
        convert_detection(args, source)
        return
    content = read_checkpoint(source)
    try:
        conversion = convert(state_dict_of(content, args.ema), args.task, args.to, args.prefix)
    except UserError as error:
        raise UserError(f'checkpoint {source}: {error}') from error
    meta = dict(naming=args.to, variant=conversion.variant, task=args.task)
    # timm loads pickles only as bare state dicts.
    bare = args.to == 'timm' and not args.target.endswith('.safetensors')
    write_checkpoint(args.target, conversion.tensors, None if bare else meta)
    print(*map(printable, [*summary(conversion), *other_entries(content, args.ema)]), sep='\n')
    size = os.path.getsize(args.target) / 1e6
    print(f'written: {args.target}, {size:.1f} MB, {args.to} naming')
    if args.to == 'timm':
        print_timm_arguments(conversion.windows)


def convert_detection(args: argparse.Namespace, source: str) -> None:
    """Convert a detector of TAO, and write the config that its tensors show."""
    from gcvit_mm.config import build_model, read_config
    from gcvit_mm.fileio import atomic_text
    from gcvit_mm.weights.files import read_checkpoint, state_dict_of, write_checkpoint
    from gcvit_mm.weights.load import mismatches
    from gcvit_mm.weights.names import shorten
    from gcvit_mm.weights.tao import convert_detector

    config_file = re.sub(r'(\.pth\.tar|\.pth|\.safetensors)$', '.py', args.target)
    if os.path.exists(config_file) and not args.force:
        raise UserError(f'{config_file} exists: pass --force to overwrite it')
    if args.to != 'gcvit_mm':
        raise UserError(f'--to {args.to} is for backbones and classifiers: omit it')
    content = read_checkpoint(source)
    try:
        detector = convert_detector(state_dict_of(content, args.ema), args.all_rows)
    except UserError as error:
        raise UserError(f'checkpoint {source}: {error}') from error
    cfg = read_config(detector.config)
    cfg.merge_from_dict(dict(model=detector.model))
    cfg.model.backbone.init_cfg = None
    if detector.names:
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.metainfo = dict(classes=detector.names)
    model = build_model(cfg, meta=True)
    wrong = mismatches(model, detector.tensors)
    wrong += sorted(detector.tensors.keys() - model.state_dict().keys())
    if wrong:
        raise UserError(
            f'checkpoint {source} does not fit {detector.config}: {len(wrong)} tensors are '
            f'missing, unknown or of another shape ({shorten(wrong, 3)})'
        )
    variant = f'GC ViT {cfg.model.backbone.arch}'
    meta = dict(naming='gcvit_mm', variant=variant, task=args.task)
    write_checkpoint(args.target, detector.tensors, meta)
    atomic_text(config_file, cfg.pretty_text)
    known = [each for each in published().values() if each.member == os.path.basename(source)]
    for each in known:
        with open(source, 'rb') as file:
            same = hashlib.file_digest(file, 'sha256').hexdigest() == each.sha256
        state = 'is' if same else 'is NOT'
        print(f'published: {each.name}, licence {each.licence}; its sha256 {state} the known one')
    print(f"source: TAO's {cfg.model.type.removeprefix('TAO')} with {variant}")
    print(f'converted: {len(detector.tensors)} tensors, {cfg.model.bbox_head.num_classes} classes')
    print(f'skipped: {sum(map(len, detector.skipped.values()))} tensors')
    for group, names in detector.skipped.items():
        print(printable(f'    {len(names)} of {group} ({shorten(names, 3)})'))
    size = os.path.getsize(args.target) / 1e6
    print(f'written: {args.target}, {size:.1f} MB, and {config_file}')


def summary(conversion: Conversion) -> Iterator[str]:
    """Describe the source, and the converted and skipped tensors."""
    from gcvit_mm.weights.names import shorten

    windows = ', '.join(map(str, conversion.windows))
    yield f'source: {conversion.variant}, {conversion.naming} naming, windows {windows}'
    classes = f', {conversion.classes} classes' if conversion.classes else ''
    yield f'converted: {len(conversion.tensors)} tensors{classes}'
    yield f'skipped: {sum(map(len, conversion.skipped.values()))} tensors'
    for group, names in conversion.skipped.items():
        yield f'    {len(names)} of {group} ({shorten(names, 3)})'


def other_entries(content: Mapping[str, Any], ema: bool) -> Iterator[str]:
    """List entries of the file that are not converted, and say if it has a moving average."""
    from torch import Tensor

    from gcvit_mm.weights.files import ema_entry, weights_entry
    from gcvit_mm.weights.names import shorten

    entry, average = weights_entry(content, ema), ema_entry(content)
    weights = content[entry] if entry else content
    others = [name for name in content if entry and name != entry]
    others += [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if others:
        yield f'not read: {shorten(others)}'
    if average and average == entry:
        yield f'weights: moving average (EMA), from the entry {entry}'
    elif average:
        yield f'weights: from the entry {entry}; --ema converts their moving average, {average}'


def print_timm_arguments(windows: tuple[int, ...]) -> None:
    """Print the arguments of timm's model, whose convolutions depend on the size of the image."""
    window = windows[0]
    fits = windows in ((window,) * 4, (window, window, 2 * window, window))
    if fits and windows != (7, 7, 14, 7):
        print(f'in timm: img_size={32 * window}, window_size={windows}')


if __name__ == '__main__':
    run(main)

"""The decisions of a fit, each with its reason; every one can be overridden."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .facts import Facts
from .options import HEADS, Options

METRICS = {
    'detection': 'coco/bbox_mAP',
    'instances': 'coco/segm_mAP',
    'segmentation': 'mIoU',
    'classification': 'accuracy/top1',
}
"""The metric that chooses the best checkpoint."""
# Learning rates for a batch, from scratch and from trained weights.
RATES = {
    'nano': (8, 1e-3, 5e-4),
    'xxtiny': (8, 4e-4, 2e-4),
    'tiny': (16, 2e-4, 1e-4),
}
BATCHES = {
    'detection': (2, 16),
    'instances': (2, 16),
    'segmentation': (4, 16),
    'classification': (32, 128),
}
"""Batch sizes for each task, on a CPU and to begin with on a GPU."""
SIDES = {'cpu': 512, 'gpu': 1024}
"""The largest side of images in pixels, unless objects become too small."""
SMALLEST = 6.0  # pixels that a quarter of the objects may be below
STEPS = {'cpu': 3000, 'gpu': 12000}
"""Steps of a run without a time limit."""
RARE = 0.1


@dataclass
class Decision:
    """A setting and why it was chosen."""

    value: Any
    why: str


Decisions = dict[str, Decision]


def decide(facts: Facts, options: Options) -> Decisions:
    """Decide everything but the batch size and the length of the training."""
    made: Decisions = {}
    for name, choose in CHOOSERS.items():
        given = getattr(options, name, None)
        made[name] = choose(facts, made) if given is None else Decision(given, 'as given')
    heads = HEADS[facts.task]
    if made['head'].value not in heads:
        raise UserError(f'--head {made["head"].value}: {facts.task} has {", ".join(heads)}')
    return made


def _model(facts: Facts, made: Decisions) -> Decision:
    images = facts.images['train']
    if not facts.gpus:
        return Decision('nano', 'there is no GPU')
    if images < 2000:
        return Decision('xxtiny', f'{images} images: larger models overfit')
    return Decision('tiny', f'{images} images and a GPU')


def _head(facts: Facts, made: Decisions) -> Decision:
    return Decision(HEADS[facts.task][0], f'for {facts.task}')


def _weights(facts: Facts, made: Decisions) -> Decision:
    if made['model'].value == 'nano':
        return Decision('scratch', 'nano has no published weights')
    return Decision('imagenet', 'few images need a trained backbone (non-commercial licence)')


def _size(facts: Facts, made: Decisions) -> Decision:
    native = float(np.percentile(facts.long_sides, 95))
    if facts.task == 'classification':
        crop = min(224, max(64, _multiple(native)))
        return Decision(crop, f'images of {native:.0f} pixels')
    most = SIDES['gpu' if facts.gpus else 'cpu']
    side = float(min(most, native))
    if facts.box_sides and side < native:
        quarter = float(np.percentile(facts.box_sides, 25))
        if quarter * side < SMALLEST:
            side = min(native, 2 * most, SMALLEST / max(quarter, 1e-6))
            why = f'smaller, a quarter of the objects would be below {SMALLEST:.0f} pixels'
            return Decision(_multiple(side), why)
    if side == native:
        return Decision(_multiple(side), 'the size of the images')
    device = 'a GPU' if facts.gpus else 'a CPU'
    return Decision(most, f'images of {native:.0f} pixels, reduced for {device}')


def _multiple(side: float) -> int:
    """The next multiple of 32, the stride of the backbone."""
    return 32 * math.ceil(side / 32)


def _tile(facts: Facts, made: Decisions) -> Decision:
    """The side of the tiles that images are cut into."""
    most = SIDES['gpu' if facts.gpus else 'cpu']
    if facts.box_sides and max(facts.long_sides) > 2 * most:
        quarter = float(np.percentile(facts.box_sides, 25)) * 2 * most
        if quarter < SMALLEST:
            why = f'a quarter of the objects would be below {SMALLEST:.0f} pixels in whole images'
            return Decision(most, why)
    return Decision(None, 'objects are large enough in whole images')


def _flips(facts: Facts, made: Decisions) -> Decision:
    if facts.tops is None or facts.task == 'classification':
        return Decision('horizontal', 'photos are never upside down')
    if max(map(abs, facts.tops)) < 2:
        return Decision('all', 'upper and lower halves look alike: images from above')
    return Decision('horizontal', 'upper and lower halves differ: the images have an upright side')


def _anchors(facts: Facts, made: Decisions) -> Decision:
    """The side of the smallest anchor in pixels."""
    if not facts.box_sides or made['head'].value not in ('mask_rcnn', 'faster_rcnn'):
        return Decision(None, 'no boxes, or none from anchors of this kind')
    small = float(np.percentile(facts.box_sides, 5)) * made['size'].value
    side = int(np.clip(2 ** round(math.log2(max(small, 1))), 8, 32))
    return Decision(side, f'95 % of the boxes have sides above {small:.0f} pixels')


def _rare(facts: Facts, made: Decisions) -> Decision:
    """The share of images up to which classes are repeated."""
    rare = [name for name, share in facts.rarity.items() if 0 < share < RARE]
    if facts.task == 'segmentation' or not rare or len(facts.classes) < 2:
        return Decision(0.0, 'no class is rare, or images cannot be repeated by class')
    return Decision(RARE, f'{len(rare)} classes are in less than {RARE:.0%} of the images')


CHOOSERS = {
    'tile': _tile,
    'model': _model,
    'head': _head,
    'weights': _weights,
    'size': _size,
    'flips': _flips,
    'anchors': _anchors,
    'rare': _rare,
}
"""The decisions in their order; later ones may use earlier ones."""


def batch_sizes(facts: Facts, options: Options) -> Iterator[Decision]:
    """Yield the batch sizes per process to try, from the largest."""
    if options.batch:
        yield Decision(options.batch, 'as given')
        return
    images = facts.images['train']
    batch, why = BATCHES[facts.task][bool(facts.gpus)], 'the usual one'
    few = max(images // (8 * max(facts.gpus, 1)), 2)
    if batch > few:
        batch, why = 2 ** int(math.log2(few)), f'there are {images} images'
    while batch:
        yield Decision(batch, why)
        batch, why = batch // 2, 'larger ones do not fit into the memory'


def rate_for(facts: Facts, made: Decisions, options: Options) -> Decision:
    """The learning rate, by the rule of ``--auto-scale-lr``."""
    if options.lr:
        return Decision(options.lr, 'as given')
    base, scratch, tuned = RATES[made['model'].value]
    total = made['batch'].value * max(facts.gpus, 1)
    rate = (scratch if made['weights'].value == 'scratch' else tuned) * math.sqrt(total / base)
    return Decision(float(f'{rate:.2g}'), f'{total} images in a step (square root)')


def epochs_for(
    facts: Facts, steps: int, seconds: tuple[float, float], options: Options
) -> Decision:
    """The number of epochs.

    Args:
        facts: The data and the machine.
        steps: Steps in an epoch.
        seconds: Seconds of a training step, and of a validation.
        options: What the user has decided.

    Raises:
        UserError: One epoch takes longer.
    """
    (step, validation), minutes = seconds, options.minutes
    epoch = steps * step
    if options.epochs:
        return Decision(options.epochs, 'as given')
    if minutes is None:
        count = min(max(round(STEPS['gpu' if facts.gpus else 'cpu'] / steps), 10), 300)
        total = (count * epoch + min(count, 15) * validation) / 60
        return Decision(count, f'about {count * steps} steps, {total:.0f} minutes (--minutes)')
    budget = 60 * minutes
    # A validation an epoch if they are few, else 15.
    count = int(budget / (epoch + validation))
    if count > 15:
        count = int((budget - 15 * validation) / epoch)
    if count < 1:
        raise UserError(
            f'--minutes {minutes:g}: an epoch with its validation takes '
            f'{(epoch + validation) / 60:.1f} minutes: pass more, or a smaller --size or --model'
        )
    return Decision(count, f'what {minutes:g} minutes allow at {step:.2f} s a step')

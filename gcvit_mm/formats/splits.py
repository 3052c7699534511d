"""Training, validation and test images: as the source says, or drawn from a seed."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..datasets.check.images import in_parallel
from ..errors import UserError
from .source import Skip, Source, split_of, stem
from .write import Sample

SIDE, ALIKE = 16, 0.95
"""Near-duplicates: the correlation of two images of 16 x 16 pixels is higher."""
CHUNK = 256
"""Images that are compared with all others at once."""
FEWEST_GROUPS, LARGEST_GROUP = 3, 0.6
"""Groups are kept on one side if there are enough of them, and none has most of the images."""


def read_lists(source: Source) -> None:
    """Read the text files that name the images of a split, such as ImageSets/Main/train.txt."""
    own = 'Segmentation' if source.kind in ('colours', 'labels') else 'Main'  # of Pascal VOC

    def rank(path: str) -> tuple[bool, bool]:
        # Images of trainval.txt are for training unless val.txt names them.
        return 'trainval' in path, f'/{own}/' not in path

    for path in sorted(source.find('.txt'), key=rank):
        split = split_of(stem(path) + '/')
        lines = source.lines(path) if split else []
        images = []
        for line in lines:
            for name in (line, line.split()[0]):
                try:
                    images.append(source.locate(path, name))
                    break
                except Skip:
                    continue
        if 2 * len(images) > len(lines):
            if len(images) < len(lines):
                what = 'images of a list are missing'
                missing = f'{path}: {len(lines) - len(images)} of {len(lines)}'
                source.report.add('warning', what, missing)
            for image in images:
                if source.listed.setdefault(image, split) != split and stem(path) != 'trainval':
                    source.report.add('warning', 'image is in two lists: the first counts', image)


def split(
    source: Source, samples: Sequence[Sample], share: float, seed: int
) -> dict[str, list[Sample]]:
    """Sort samples into 'train', 'val' and maybe 'test'.

    Images of a split without a name are not used if there are lists, and else are for training.
    Without validation images, a share of the training images is held out.
    """
    splits: dict[str, list[Sample]] = {'train': [], 'val': [], 'test': []}
    for sample in samples:
        record = sample.record
        folder = posixpath.dirname(record.image) + '/'
        own = source.listed.get(record.image) or record.split or split_of(folder)
        if source.listed and not own:
            what = 'image is in no list of a split: not used'
            source.report.add('warning', what, record.image)
        else:
            splits[own or 'train'].append(sample)
    if not splits['train']:
        splits = {'train': [*splits['val'], *splits['test']], 'val': [], 'test': []}
    if not splits['val']:
        splits['train'], splits['val'] = hold_out(source, splits['train'], share, seed)
    return {name: own for name, own in splits.items() if own}


def hold_out(
    source: Source, samples: list[Sample], share: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Draw validation images, with a share of each class.

    Folders, else frames of a video, and images that are nearly equal stay on one side, unless that
    leaves no fair choice.
    """
    if len(samples) < 2:
        what = f'{source.root} has {len(samples)} image with labels that can be used: 2 are needed'
        raise UserError(what + source.first_problem())
    names = sorted({name for sample in samples for name in sample.present})
    columns = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(samples), len(names) + 1))
    for row, sample in zip(counts, samples, strict=True):
        for name in sample.present:
            row[columns[name]] += 1
        row[-1] = not sample.present
    alike = near_duplicates(source, samples)
    keys: list[Callable[[Sample], str]] = [
        lambda sample: posixpath.dirname(sample.name),
        lambda sample: re.sub(r'\d+$', '', posixpath.splitext(sample.name)[0]),
        lambda sample: sample.name,
    ]
    for key in keys:
        groups = _groups([key(sample) for sample in samples], alike)
        largest = max(map(len, groups)) / len(samples)
        if len(groups) >= FEWEST_GROUPS and largest <= LARGEST_GROUP:
            sums = np.array([counts[group].sum(0) for group in groups])
            alone = (sums[:, :-1] > 0).sum(0) == 1
            if not names or 2 * alone.sum() <= len(names) or key is keys[-1]:
                break
    else:
        groups = [[number] for number in range(len(samples))]
        sums = counts
    total = sums.sum(0).clip(1)
    shares = sums / total

    def distance(held: np.ndarray) -> float:
        return float(np.square(held - share).sum())

    drawn = np.random.default_rng(seed).permutation(len(groups))
    chosen: list[int] = []
    held = np.zeros_like(total)
    for group in drawn[np.argsort(-shares[drawn].max(1), kind='stable')]:  # rare classes first
        if distance(held + shares[group]) < distance(held):
            chosen.append(int(group))
            held += shares[group]
    if not chosen or len(chosen) == len(groups):
        chosen = [min(range(len(groups)), key=lambda group: distance(shares[group]))]
    val = {number for group in chosen for number in groups[group]}
    train, held_out = (
        [own for number, own in enumerate(samples) if (number in val) == side]
        for side in (False, True)
    )
    return train, held_out


def _groups(keys: Sequence[str], alike: Sequence[int]) -> list[list[int]]:
    """Join samples of equal keys, and of equal numbers in ``alike``."""
    parent: dict[str | int, str | int] = {}

    def root(node: str | int) -> str | int:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for key, twin in zip(keys, alike, strict=True):
        parent[root(key)] = root(twin)
    groups = defaultdict(list)
    for number, key in enumerate(keys):
        groups[root(key)].append(number)
    return list(groups.values())


def near_duplicates(source: Source, samples: Sequence[Sample]) -> list[int]:
    """Number samples so that images which are nearly equal have one number."""

    def thumbnail(image: str) -> np.ndarray:
        try:
            with Image.open(source.root / image) as opened:
                opened.draft('L', (4 * SIDE, 4 * SIDE))  # a JPEG is decoded at a lower size
                small = opened.convert('L').resize((SIDE, SIDE), Image.Resampling.BOX)
        except Exception:  # of a damaged file, which tools/check_dataset.py names
            return np.zeros(SIDE * SIDE, np.float32)
        values = np.asarray(small, np.float32).ravel()
        values -= values.mean()
        return values / max(float(np.linalg.norm(values)), 1e-6)

    images = [sample.record.image for sample in samples]
    small = np.array(list(in_parallel(thumbnail, images, 'near-duplicates')))
    numbers: list[int] = []
    for start in range(0, len(small), CHUNK):
        first = (small[start : start + CHUNK] @ small.T > ALIKE).argmax(axis=1)
        numbers += range(start, start + len(first))
        for number, earlier in enumerate(first.tolist(), start):
            numbers[number] = numbers[earlier] if earlier < number else number
    return numbers

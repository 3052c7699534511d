"""Training, validation and test images: as the source says, or drawn from a seed."""

import posixpath
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..datasets.check.images import in_parallel
from ..errors import UserError
from .source import Record, Skip, Source, split_of, stem

Splits: TypeAlias = dict[str, list[Record]]
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
            with suppress(Skip):
                images.append(source.locate(path, line, line.split()[0]))
        if 2 * len(images) <= len(lines):
            continue
        if missing := len(lines) - len(images):
            where = f'{path}: {missing} of {len(lines)}'
            source.report.add('warning', 'images of a list are missing', where)
        for image in images:
            if source.listed.setdefault(image, split) != split and stem(path) != 'trainval':
                source.report.add('warning', 'image is in two lists: the first counts', image)


def split(source: Source, records: Sequence[Record], share: float, seed: int) -> Splits:
    """Sort records into 'train', 'val' and maybe 'test'.

    Images of a split without a name are not used if there are lists, and else are for training.
    Without validation images, a share of the training images is held out.
    """
    splits: Splits = {'train': [], 'val': [], 'test': []}
    for record in records:
        image = record.image
        folder = posixpath.dirname(image) + '/'
        own = source.listed.get(image) or record.split or split_of(folder)
        if source.listed and not own:
            source.report.add('warning', 'image is in no list of a split: not used', image)
        else:
            splits[own or 'train'].append(record)
    if not splits['train']:
        splits = {'train': [*splits['val'], *splits['test']], 'val': [], 'test': []}
    if not splits['val']:
        held = hold_out(source, splits['train'], share, seed)
        for name, side in (('val', True), ('train', False)):
            pairs = zip(splits['train'], held, strict=True)
            splits[name] = [record for record, chosen in pairs if chosen == side]
    return {name: own for name, own in splits.items() if own}


def hold_out(source: Source, records: Sequence[Record], share: float, seed: int) -> np.ndarray:
    """Draw validation images, with a share of each class.

    Folders, else frames of a video, and images that are nearly equal stay on one side, unless that
    leaves no fair choice.

    Returns:
        Whether each record is for validation.
    """
    if len(records) < 2:
        what = f'{source.root} has {len(records)} image with labels that can be used: 2 are needed'
        raise UserError(what + source.first_problem())
    present = [name for record in records for name in record.present]
    names, columns = np.unique(present, return_inverse=True)
    counts = np.zeros((len(records), len(names) + 1))
    lengths = [len(record.present) for record in records]
    np.add.at(counts, (np.repeat(np.arange(len(records)), lengths), columns), 1)
    counts[:, -1] = np.equal(lengths, 0)
    groups, sums = _groups(source, records, counts)
    total = sums.sum(0).clip(1)
    shares = sums / total

    def distance(held: np.ndarray) -> float:
        return float(np.square(held - share).sum())

    drawn = np.random.default_rng(seed).permutation(len(sums))
    chosen: list[int] = []
    held = np.zeros_like(total)
    for group in drawn[np.argsort(-shares[drawn].max(1), kind='stable')]:  # rare classes first
        if distance(held + shares[group]) < distance(held):
            chosen.append(int(group))
            held += shares[group]
    if not chosen or len(chosen) == len(sums):
        chosen = [min(range(len(sums)), key=lambda group: distance(shares[group]))]
    return np.isin(groups, chosen)


def _groups(
    source: Source, records: Sequence[Record], counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The group of each record, and the sums of ``counts`` (records, classes + 1) in each group."""
    twins = near_duplicates(source, records)
    keys: list[Callable[[str], str]] = [
        posixpath.dirname,
        lambda name: re.sub(r'\d+$', '', posixpath.splitext(name)[0]),
        str,
    ]
    for key in keys:
        _, first, number = np.unique(
            [key(record.name) for record in records], return_index=True, return_inverse=True
        )
        ends = np.r_[twins, first[number]], np.tile(np.arange(len(records)), 2)
        graph = coo_array((np.ones(2 * len(records)), ends), shape=(len(records),) * 2)
        count, groups = connected_components(graph, directed=False)
        sums = np.zeros((count, counts.shape[1]))
        np.add.at(sums, groups, counts)
        alone = ((sums[:, :-1] > 0).sum(0) == 1).mean() if counts.shape[1] > 1 else 0
        largest = np.bincount(groups).max() / len(records)
        if count >= FEWEST_GROUPS and largest <= LARGEST_GROUP and (alone <= 0.5 or key is str):
            return groups, sums
    return np.arange(len(records)), counts


def near_duplicates(source: Source, records: Sequence[Record]) -> np.ndarray:
    """The number of the first record whose image is nearly equal to that of each record."""

    def shrink(image: Image.Image) -> np.ndarray:
        image.draft('L', (4 * SIDE, 4 * SIDE))  # a JPEG is decoded at a lower size
        return np.asarray(image.convert('L').resize((SIDE, SIDE), Image.Resampling.BOX))

    def thumbnail(record: Record) -> np.ndarray:
        values = np.zeros(SIDE * SIDE, np.float32)
        with suppress(Skip):  # of a damaged file, which tools/check_dataset.py names
            values += source.open(record.image, shrink).ravel()
        values -= values.mean()
        return values / max(float(np.linalg.norm(values)), 1e-6)

    small = np.array(list(in_parallel(thumbnail, records, 'near-duplicates')))
    chunks = [small[start : start + CHUNK] for start in range(0, len(small), CHUNK)]
    return np.concatenate([(chunk @ small.T > ALIKE).argmax(axis=1) for chunk in chunks])

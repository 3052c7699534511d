"""Checks of label maps: one channel, the size of the image, and labels that are classes."""

import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from ..load_label_map import (
    INVALID,
    WrongMap,
    check_size,
    check_values,
    decode_map,
    labels_of_values,
)
from .images import (
    ReadImage,
    add_image,
    check_hidden,
    in_parallel,
    list_entries,
    missing_files,
    read_image,
    reason,
    relative,
)
from .report import Finding, Report

NO_MAP = 'image without a label map: add it, or check seg_map_suffix and data_prefix'
# The values of masks that were painted black and white.
BLACK_AND_WHITE = {0, 255}


@dataclass
class Pair:
    """An image and its label map; ``values`` is the number of pixels of each value in the map."""

    image: ReadImage | str
    findings: list[Finding]
    values: dict[int, int] | None = None


def check_label_maps(dataset: BaseDataset, report: Report, *, pixels: bool = True) -> None:
    """Check a data set of images and label maps, mmseg's ``BaseSegDataset``, not initialised.

    Without ``pixels``, only the names of files are checked, and label maps are read until one has
    another value than 0 and 255.
    """
    classes = tuple(dataset.metainfo.get('classes') or ())
    entries = list_entries(dataset)
    if not entries:
        folder = dataset.data_prefix['img_path']
        what = f'no images *{dataset.img_suffix}: check img_suffix and data_prefix'
        report.add('error', what, dataset.ann_file or _suffixes(folder))
    if not dataset.ann_file:
        folder = dataset.data_prefix['img_path']
        check_hidden(report, [entry['img_path'] for entry in entries], folder)
    if pixels:
        seen = _check_files(dataset, entries, classes, report)
        _check_unpaired(dataset, entries, report)
    else:
        seen = _check_names(dataset, entries, report)
        report.classes = {name: {} for name in classes}
    if seen and seen <= BLACK_AND_WHITE and len(classes) > 1:
        if 255 in seen and dataset.ignore_index == 255:
            what = 'label maps have only the values 0 and 255: 255 is ignored, write 1'
            report.add('error', what, dataset.data_prefix['seg_map_path'])
        elif report.name.startswith('train'):
            what = 'label maps have only one value: there is nothing to learn'
            report.add('error', what, dataset.data_prefix['seg_map_path'])


def _check_names(dataset: BaseDataset, entries: list[dict], report: Report) -> set[int]:
    """Check that all files exist; returns the values of label maps, as far as they were read."""
    for path, why in missing_files(entry['img_path'] for entry in entries).items():
        add_image(report, why, relative(path, dataset.data_root))
    maps = [entry['seg_map_path'] for entry in entries if entry.get('seg_map_path')]
    missing = missing_files(maps)
    for path in missing:
        report.add('error', NO_MAP, relative(path, dataset.data_root))
    seen: set[int] = set()
    for path in maps if not missing else []:
        try:
            seen.update(_count_values(decode_map(Path(path).read_bytes())))
        except Exception:  # it is named when it is loaded
            return set()
        if not seen <= BLACK_AND_WHITE:
            break
    return seen


def _check_files(
    dataset: BaseDataset, entries: list[dict], classes: tuple[str, ...], report: Report
) -> set[int]:
    """Read all images and label maps; returns the values of the maps."""
    labels = labels_of_values(
        dataset.reduce_zero_label, dataset.label_map, len(classes), dataset.ignore_index
    )
    pixels, images, seen = Counter[int](), Counter[int](), set[int]()
    examine = partial(_examine, root=dataset.data_root, labels=labels)
    for entry, pair in zip(entries, in_parallel(examine, entries, report.name), strict=True):
        add_image(report, pair.image, relative(entry['img_path'], dataset.data_root))
        report.extend(pair.findings)
        if pair.values:
            seen |= pair.values.keys()
            counts = Counter[int]()
            for value, count in pair.values.items():
                counts[int(labels[min(value, 256)])] += count
            wrong = counts.pop(INVALID, 0)
            if not wrong and set(counts) == {dataset.ignore_index}:
                place = relative(entry['seg_map_path'], dataset.data_root)
                report.add('warning', 'label map has only ignored pixels', place)
            pixels.update(counts)
            images.update(counts.keys())
            share = 100 * counts[dataset.ignore_index] / max(counts.total() + wrong, 1)
            report.sizes.setdefault('% ignored', []).append(share)
    if classes and pixels:
        _count_classes(classes, pixels, images, report)
    return seen


def _examine(entry: dict, root: str | None, labels: np.ndarray) -> Pair:
    pair = Pair(read_image(entry['img_path']), [])
    if entry.get('seg_map_path'):
        place = relative(entry['seg_map_path'], root)
        try:
            _examine_map(pair, entry['seg_map_path'], labels)
        except WrongMap as error:
            pair.findings.append(Finding('error', error.what, f'{place}: {error.detail}'))
        except FileNotFoundError:
            pair.findings.append(Finding('error', NO_MAP, place))
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            what = 'label map cannot be read whole'
            pair.findings.append(Finding('error', what, f'{place}: {reason(error)}'))
    return pair


def _examine_map(pair: Pair, path: str, labels: np.ndarray) -> None:
    values = decode_map(Path(path).read_bytes())
    pair.values = _count_values(values)
    if isinstance(pair.image, ReadImage):
        check_size(values, pair.image.width, pair.image.height)
    check_values(np.array(list(pair.values)), labels)


def _count_values(values: np.ndarray) -> dict[int, int]:
    if values.itemsize == 1:  # several times faster
        counts = np.bincount(values.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    present, sums = np.unique(values, return_counts=True)
    return dict(zip(present.tolist(), sums.tolist(), strict=True))


def _suffixes(folder: str) -> str:
    """Summarise the files of a folder by suffix."""
    counts = Counter(path.suffix for path in Path(folder).rglob('*') if path.is_file())
    files = ', '.join(f'{count} *{suffix}' for suffix, count in counts.most_common(3))
    return f'{folder}: {files or "empty"}'


def _check_unpaired(dataset: BaseDataset, entries: list[dict], report: Report) -> None:
    """Report images and label maps that are not used; a list may name only some of a folder."""
    for key, suffix, what in (
        ('img_path', '', f'file without the suffix {dataset.img_suffix} of images: not used'),
        ('seg_map_path', dataset.seg_map_suffix, 'label map without an image'),
    ):
        folder = dataset.data_prefix.get(key)
        if not folder or dataset.ann_file or not entries:
            continue
        known = {os.path.normpath(entry[key]) for entry in entries if key in entry}
        for path in sorted(Path(folder).rglob(f'*{suffix}')):
            if path.is_file() and path.name[0] != '.' and os.path.normpath(path) not in known:
                report.add('warning', what, relative(str(path), dataset.data_root))


def _count_classes(
    classes: tuple[str, ...], pixels: Counter[int], images: Counter[int], report: Report
) -> None:
    total = sum(pixels.values())
    for label, name in enumerate(classes):
        share = float(f'{100 * pixels[label] / total:.3g}')
        report.classes[name] = {'% of pixels': share, 'images': images[label]}
        if not pixels[label]:
            report.add('warning', 'class without pixels', name)

"""Checks of label maps: one channel, the size of the image, and labels that are classes."""

import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from PIL import Image

from .images import (
    ReadImage,
    add_image,
    in_parallel,
    read_image,
    reason,
    relative,
    unreadable,
)
from .report import Finding, Report

# The label that losses and metrics of mmseg ignore.
IGNORED = 255
INVALID = -1


@dataclass
class Pair:
    """An image and its label map; ``values`` is the number of pixels of each value in the map."""

    image: ReadImage | str
    findings: list[Finding]
    values: np.ndarray | None = None


def check_label_maps(dataset: BaseDataset, report: Report) -> None:
    """Check a data set of images and label maps.

    Args:
        dataset: A subclass of mmseg's ``BaseSegDataset``, not initialised.
        report: The report to add problems to.
    """
    entries = dataset.load_data_list()
    folder = dataset.data_prefix['img_path']
    if not entries:
        report.add('error', f'no images *{dataset.img_suffix}', _suffixes(folder))
    classes = tuple(dataset.metainfo.get('classes') or ())
    labels = labels_of_values(dataset, len(classes))
    pixels, images = Counter[int](), Counter[int]()
    examine = partial(_examine, root=dataset.data_root)
    for entry, pair in zip(entries, in_parallel(examine, entries, report.name), strict=True):
        report.extend(pair.findings)
        if isinstance(pair.image, ReadImage):
            add_image(report, pair.image)
        if pair.values is not None:
            place = relative(entry['seg_map_path'], dataset.data_root)
            counts = _count_labels(pair.values, labels, place, report)
            pixels.update(counts)
            images.update(counts.keys())
            share = 100 * counts[IGNORED] / max(pair.values.sum(), 1)
            report.sizes.setdefault('% ignored', []).append(share)
    _check_unpaired_maps(dataset, entries, report)
    if classes and pixels:
        _count_classes(classes, pixels, images, report)


def labels_of_values(dataset: BaseDataset, classes: int) -> np.ndarray:
    """The label to which mmseg converts each value of a label map.

    Args:
        dataset: The data set, with ``reduce_zero_label`` and ``label_map``.
        classes: Number of classes.

    Returns:
        Array (256,) of int: the class, ``IGNORED``, or ``INVALID``.
    """
    labels: np.ndarray = np.arange(256)
    if dataset.reduce_zero_label:
        labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
    if dataset.label_map:
        labels = np.array([dataset.label_map.get(label, label) for label in labels.tolist()])
    labels[(labels >= classes) & (labels != IGNORED)] = INVALID
    return labels


def _examine(entry: dict, root: str | None) -> Pair:
    image = read_image(entry['img_path'])
    place = relative(entry['img_path'], root)
    pair = Pair(image, [unreadable(image, place)] if isinstance(image, str) else [])
    if entry.get('seg_map_path'):
        _examine_map(pair, entry['seg_map_path'], relative(entry['seg_map_path'], root))
    return pair


def _examine_map(pair: Pair, path: str, place: str) -> None:
    try:
        with Image.open(path) as label_map:
            bands, size = label_map.getbands(), label_map.size
            # Like mmseg, read the indices of a palette, not its colours.
            values = np.asarray(label_map)
    except FileNotFoundError:
        pair.findings.append(Finding('error', 'image without a label map', place))
        return
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        what = 'label map cannot be read whole'
        pair.findings.append(Finding('error', what, f'{place}: {reason(error)}'))
        return
    if isinstance(pair.image, ReadImage) and size != (pair.image.width, pair.image.height):
        detail = f'{size[0]} x {size[1]}, image {pair.image.width} x {pair.image.height}'
        what = 'label map and image differ in size'
        pair.findings.append(Finding('error', what, f'{place}: {detail}'))
    if len(bands) > 1:
        what = 'label map has several channels: it must have one, with class numbers'
        pair.findings.append(Finding('error', what, f'{place}: {"".join(bands)}'))
    elif values.dtype.kind == 'f' or values.min() < 0:
        what = 'label map with values that are not class numbers'
        pair.findings.append(Finding('error', what, f'{place}: {values.dtype}'))
    else:
        pair.values = np.bincount(values.ravel(), minlength=256)


def _count_labels(
    values: np.ndarray, labels: np.ndarray, place: str, report: Report
) -> Counter[int]:
    """Count the pixels of each label of a label map, and report values that are not classes."""
    present = np.flatnonzero(values)
    wrong = [int(v) for v in present if v >= len(labels) or labels[v] == INVALID]
    if wrong:
        report.add('error', 'label map values are not classes', f'{place}: {_brief(wrong)}')
    counts: Counter[int] = Counter()
    for value in set(present.tolist()) - set(wrong):
        counts[int(labels[value])] += int(values[value])
    if not wrong and set(counts) == {IGNORED}:
        report.add('warning', 'label map has only ignored pixels', place)
    return counts


def _brief(values: list[int]) -> str:
    shown = ', '.join(map(str, values[:10]))
    return f'{shown}, ... {values[-1]}' if len(values) > 10 else shown


def _suffixes(folder: str) -> str:
    """Summarise the files of a folder by suffix."""
    counts = Counter(path.suffix for path in Path(folder).rglob('*') if path.is_file())
    files = ', '.join(f'{count} *{suffix}' for suffix, count in counts.most_common(3))
    return f'{folder}: {files or "empty"}'


def _check_unpaired_maps(dataset: BaseDataset, entries: list[dict], report: Report) -> None:
    folder = dataset.data_prefix.get('seg_map_path')
    if not folder or dataset.ann_file:  # a list may name only some images of the folder
        return
    known = {os.path.normpath(entry['seg_map_path']) for entry in entries}
    for path in sorted(Path(folder).rglob(f'*{dataset.seg_map_suffix}')):
        if os.path.normpath(path) not in known:
            place = relative(str(path), dataset.data_root)
            report.add('warning', 'label map without an image', place)


def _count_classes(
    classes: tuple[str, ...], pixels: Counter[int], images: Counter[int], report: Report
) -> None:
    total = sum(pixels.values())
    for label, name in enumerate(classes):
        share = float(f'{100 * pixels[label] / total:.3g}')
        report.classes[name] = {'% of pixels': share, 'images': images[label]}
        if not pixels[label]:
            report.add('warning', 'class without pixels', name)

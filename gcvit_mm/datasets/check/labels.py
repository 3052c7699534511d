"""Checks of classification data: class folders, or lists of files and labels."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from mmengine.dataset import BaseDataset

from .images import ReadImage, add_image, in_parallel, read_image, relative, unreadable
from .report import Report


class Sample(NamedTuple):
    """An image file and its label."""

    path: str
    label: int


def check_labels(dataset: BaseDataset, report: Report) -> None:
    """Check a data set of labelled images.

    Args:
        dataset: mmpretrain's ``CustomDataset`` or a subclass, not initialised.
        report: The report to add problems to.
    """
    classes = tuple(dataset.CLASSES or ())
    if not dataset.with_label:
        samples = [Sample(path, -1) for path in _files(dataset, dataset.img_prefix, report)]
    elif dataset.ann_file:
        samples = _listed(dataset, len(classes), report)
    else:
        samples = _in_folders(dataset, classes, report)
        classes = classes or tuple(report.folders)
    if not samples:
        report.add('error', 'no images', dataset.ann_file or dataset.img_prefix)
    paths = [sample.path for sample in samples]
    for path, image in zip(paths, in_parallel(read_image, paths, report.name), strict=True):
        if isinstance(image, ReadImage):
            add_image(report, image)
        else:
            report.extend([unreadable(image, relative(path, dataset.data_root))])
    if dataset.with_label:
        _count(classes, samples, report)


def _files(dataset: BaseDataset, folder: str, report: Report) -> list[str]:
    """The images of a folder and its subfolders, recognised by their suffixes."""
    files = sorted(path for path in Path(folder).rglob('*') if path.is_file())
    for path in files:
        if not dataset.is_valid_file(path.name) and not path.name.startswith('.'):
            where = relative(str(path), dataset.data_root)
            report.add('note', 'file without the suffix of an image: skipped', where)
    return [str(path) for path in files if dataset.is_valid_file(path.name)]


def _in_folders(dataset: BaseDataset, classes: tuple[str, ...], report: Report) -> list[Sample]:
    """The images of class folders, which are numbered in alphabetical order."""
    root = Path(dataset.img_prefix)
    report.folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if classes and len(classes) != len(report.folders):
        what = f'{len(report.folders)} class folders, but {len(classes)} classes'
        missing = ', '.join(sorted(set(classes) - set(report.folders))[:3])
        unknown = ', '.join(sorted(set(report.folders) - set(classes))[:3])
        hint = f'without folder: {missing or "none"}; without class: {unknown or "none"}'
        report.add('error', what, f'{root}: {hint}')
    elif set(classes) == set(report.folders) and list(classes) != report.folders:
        what = 'classes of the config are not in the alphabetical order of the folders'
        report.add('error', what, f'{root}: {", ".join(report.folders[:5])}')
    samples = []
    for label, name in enumerate(report.folders):
        files = _files(dataset, str(root / name), report)
        samples += [Sample(path, label) for path in files]
    return samples


def _listed(dataset: BaseDataset, classes: int, report: Report) -> list[Sample]:
    """The images of a list with a path and a label per line."""
    list_file = relative(dataset.ann_file, dataset.data_root)
    samples = []
    for number, line in enumerate(Path(dataset.ann_file).read_text().splitlines(), 1):
        place = f'{list_file}, line {number}: {line[:120]!r}'
        name, _, label = line.strip().rpartition(' ')
        if not name or not label.isdecimal():
            report.add('error', 'line is not a path, a space and a label', place)
            continue
        if classes and int(label) >= classes:
            report.add('error', f'label is not from 0 to {classes - 1}', place)
        samples.append(Sample(os.path.join(dataset.img_prefix, name), int(label)))
    _check_repeated(samples, dataset, report)
    return samples


def _check_repeated(samples: list[Sample], dataset: BaseDataset, report: Report) -> None:
    first: dict[str, int] = {}
    for path, label in samples:
        if path in first:
            place = relative(path, dataset.data_root)
            if label == first[path]:
                report.add('warning', 'image listed twice', place)
            else:
                what = 'image listed with different labels'
                report.add('error', what, f'{place}: {first[path]} and {label}')
        first.setdefault(path, label)


def _count(classes: tuple[str, ...], samples: list[Sample], report: Report) -> None:
    counts = Counter(label for _, label in samples)
    names = dict(enumerate(classes)) or {label: str(label) for label in sorted(counts)}
    for label, name in names.items():
        report.classes[name] = {'images': counts[label]}
        if not counts[label]:
            report.add('warning', 'class without images', name)

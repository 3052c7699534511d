"""Checks of classification data: class folders, or lists of files and labels."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from mmengine.dataset import BaseDataset
from mmengine.fileio import list_dir_or_file, list_from_file

from ...errors import UserError
from .images import add_image, check_hidden, check_images, missing_files, relative
from .report import Report


class Sample(NamedTuple):
    """An image file, its label, and where both are given."""

    path: str
    label: int
    place: str


def check_labels(dataset: BaseDataset, report: Report, *, pixels: bool = True) -> None:
    """Check a data set of labelled images, mmpretrain's ``CustomDataset``, not initialised.

    Without ``pixels``, only folders, lists and the names of files are checked.
    """
    classes = tuple(dataset.metainfo.get('classes') or ())
    if dataset.ann_file:
        samples = _listed(dataset, len(classes), report)
    elif dataset.with_label:
        samples = _in_folders(dataset, classes, report)
        classes = classes or tuple(report.folders)
    else:
        samples = _files(dataset, dataset.img_prefix, -1, report)
    if not samples:
        report.add('error', 'no images', dataset.ann_file or dataset.img_prefix)
    missing = missing_files(sample.path for sample in samples) if dataset.ann_file else {}
    for sample in samples:
        if sample.path in missing:
            add_image(report, missing[sample.path], sample.place)
    if pixels:
        paths = [sample.path for sample in samples if sample.path not in missing]
        check_images(report, paths, dataset.data_root)
    if dataset.with_label:
        _count(classes, samples, report)


def _files(dataset: BaseDataset, folder: str, label: int, report: Report) -> list[Sample]:
    """The images of a folder and its subfolders, recognised by their suffixes."""
    samples, others = [], Counter[str]()
    for name in sorted(list_dir_or_file(folder, list_dir=False, recursive=True)):
        path = os.path.join(folder, name)
        place = relative(path, dataset.data_root)
        if dataset.is_valid_file(name):
            samples.append(Sample(path, label, place))
        else:
            others[os.path.splitext(name)[1]] += 1
            report.add('note', 'file without the suffix of an image: skipped', place)
    check_hidden(report, [sample.path for sample in samples], folder)
    if others and not samples:
        kinds = ', '.join(f'{count} *{suffix}' for suffix, count in others.most_common(3))
        what = f'folder without {", ".join(sorted(dataset.extensions))}: convert its files'
        report.add('error', what, f'{folder}: {kinds}')
    return samples


def _in_folders(dataset: BaseDataset, classes: tuple[str, ...], report: Report) -> list[Sample]:
    """The images of class folders, which are numbered in alphabetical order."""
    root = Path(dataset.img_prefix)
    # mmpretrain takes hidden folders for classes too.
    folders = report.folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    hidden = [name for name in folders if name.startswith('.')]
    if hidden:
        report.add('error', 'hidden folder counts as a class: delete it', str(root / hidden[0]))
    lower, names = ([name.casefold() for name in kind] for kind in (folders, classes))
    if classes and len(classes) != len(folders):
        what = f'{len(folders)} class folders, but {len(classes)} classes'
        missing = ', '.join(sorted(set(classes) - set(folders))[:3])
        unknown = ', '.join(sorted(set(folders) - set(classes))[:3])
        hint = f'without folder: {missing or "none"}; without class: {unknown or "none"}'
        report.add('error', what, f'{root}: {hint}')
    elif set(names) == set(lower) and names != lower:
        what = 'classes of the config are not in the alphabetical order of the folders'
        first = f'{", ".join(folders[:5])}{", ..." if len(folders) > 5 else ""}'
        report.add('error', what, f'{root}: set metainfo.classes to {first}')
    elif not set(names).isdisjoint(lower) and names != lower:
        differing = ', '.join(sorted(set(folders) ^ set(classes))[:6])
        what = 'some class folders are not among the classes: rename either'
        report.add('error', what, f'{root}: {differing}')
    elif classes and names != lower and _misnumbered(folders):
        what = 'numbers of class folders are not in alphabetical order: write leading zeros'
        report.add('error', what, f'{root}: {", ".join(folders[:5])}')
    samples = []
    for label, name in enumerate(folders):
        samples += _files(dataset, str(root / name), label, report)
    return samples


def _misnumbered(folders: list[str]) -> bool:
    numbers = [int(name) for name in folders if name.isdecimal()]
    return len(numbers) == len(folders) and numbers != sorted(numbers)


def _listed(dataset: BaseDataset, classes: int, report: Report) -> list[Sample]:
    """The images of a list with a path and a label per line, or with a path alone."""
    list_file = relative(dataset.ann_file, dataset.data_root)
    try:
        lines = list_from_file(dataset.ann_file)
    except (OSError, ValueError) as error:
        raise UserError(f'list {dataset.ann_file} cannot be read as UTF-8: {error}') from error
    samples = []
    for number, line in enumerate(lines, 1):
        place = f'{list_file}, line {number}: {line[:120]!r}'
        name, _, label = line.strip().rpartition(' ') if dataset.with_label else (line, '', '0')
        if not name or not label.isdecimal():
            report.add('error', 'line is not a path, a space and a label', place)
            continue
        if classes and int(label) >= classes:
            report.add('error', f'label is not from 0 to {classes - 1}', place)
        samples.append(Sample(os.path.join(dataset.img_prefix, name), int(label), place))
    _check_repeated(samples, dataset, report)
    return samples


def _check_repeated(samples: list[Sample], dataset: BaseDataset, report: Report) -> None:
    first: dict[str, int] = {}
    for path, label, _ in samples:
        if path in first:
            place = relative(path, dataset.data_root)
            if label == first[path]:
                report.add('warning', 'image listed twice', place)
            else:
                what = 'image listed with different labels'
                report.add('error', what, f'{place}: {first[path]} and {label}')
        first.setdefault(path, label)


def _count(classes: tuple[str, ...], samples: list[Sample], report: Report) -> None:
    counts = Counter(sample.label for sample in samples)
    names = dict(enumerate(classes)) or {label: str(label) for label in sorted(counts)}
    repeated = {name for name, count in Counter(classes).items() if count > 1}
    names = {k: f'{name} ({k})' if name in repeated else name for k, name in names.items()}
    for label, name in names.items():
        report.classes[name] = {'images': counts[label]}
        if not counts[label]:
            report.add('warning', 'class without images', name)

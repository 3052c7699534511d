"""Data sets of other formats, brought into the form that the configs read."""

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..choices import TASKS
from ..datasets.check.report import Report, write_reports
from ..drawing.palette import color_of
from ..errors import ArgumentError, UserError
from ..fileio import atomic_text
from . import maps, objects
from .dataset import FILE, Dataset
from .source import Record, Skip, Source, is_mask, suffix
from .splits import read_lists, split
from .write import WRITERS, Sample, annotate, coco, paint, place, save_map, unique_names

__all__ = ['FORMATS', 'TASKS', 'WRITERS', 'Dataset', 'bring_in', 'describe', 'export', 'recognise']

FORMATS: dict[str, tuple[str, objects.Find, objects.Read]] = {
    'coco': ('COCO', *objects.COCO),
    'panoptic': ('COCO panoptic', *maps.PANOPTIC),
    'cvat': ('CVAT', *objects.CVAT),
    'labelme': ('LabelMe', *objects.LABELME),
    'via': ('VIA', *objects.VIA),
    'supervisely': ('Supervisely', *objects.SUPERVISELY),
    'voc': ('Pascal VOC', *objects.VOC),
    'yolo': ('YOLO', objects.find_yolo, objects.read_yolo),
    'csv': ('CSV', maps.find_csv, maps.read_csv),
    'instance-masks': (
        'instance mask',
        partial(maps.find_masks, kind='instances'),
        maps.read_instance_masks,
    ),
    'colour-masks': ('colour mask', partial(maps.find_masks, kind='colours'), maps.read_maps),
    'label-maps': ('label map', partial(maps.find_masks, kind='labels'), maps.read_maps),
    'folders': ('class folder', maps.find_folders, maps.read_folders),
}
"""The formats in the order in which they are looked for: title, label files, records."""
NEEDS = {
    'detection': 'boxes or masks of objects',
    'instances': 'masks of objects',
    'segmentation': 'label maps, or masks of objects',
    'classification': 'one class for each image',
}

HAS: dict[str, Callable[[Record], bool]] = {
    'detection': lambda record: bool(record.objects),
    'instances': lambda record: any(own.mask for own in record.objects),
    'segmentation': lambda r: bool(r.label_map) or any(own.mask for own in r.objects),
    'classification': lambda record: bool(record.label),
}


def bring_in(
    source: str | os.PathLike,
    dest: str | os.PathLike | None = None,
    *,
    format: str | None = None,
    task: str | None = None,
    val: float = 0.2,
    seed: int = 0,
    copy: bool = False,
) -> Dataset:
    """Recognise the labels of a folder, and write them in the form that the configs read.

    The source is never changed. Images stay where they are, unless ``copy`` is set.

    Args:
        source: The folder with images and labels.
        dest: The folder to write; default: ``gcvit_mm`` in the source. One that was written before
            is replaced when the new one is complete.
        format: One of ``FORMATS``; default: it is recognised.
        task: One of ``TASKS``; default: what the labels are for.
        val: The share of images for validation, if the source has no split.
        seed: The seed of that split.
        copy: Copy the images too.

    Returns:
        The data set. Its ``reports`` say what was read and skipped; ``import.json`` has them too.

    Raises:
        UserError: No format is recognised, a label file is broken, no image has a label that can
            be used, or ``dest`` cannot be written.
    """
    root, dest = Path(source), Path(dest) if dest else Path(source) / 'gcvit_mm'
    with _folder(root, dest) as folder:
        read = _read(root, dest, folder, format, task, val, seed)
        for name, samples in read.splits.items():
            for sample in samples if copy else ():
                place(read.source, sample.record.image, folder / 'images' / sample.name, True)
            if read.task in ('detection', 'instances'):
                atomic_text(folder / f'{name}.json', coco(samples, read.classes))
                continue
            lines = [sample.name for sample in samples]
            if read.task == 'classification':
                lines = [f'{own.name} {read.classes.index(own.record.label)}' for own in samples]
            atomic_text(folder / f'{name}.txt', ''.join(f'{line}\n' for line in lines))
        palette = read.source.palette
        dataset = Dataset(
            root=dest,
            images=dest / 'images' if copy else Path(os.path.abspath(root)),
            format=read.format,
            task=read.task,
            classes=tuple(read.classes),
            palette=tuple(palette.get(c) or color_of((), i) for i, c in enumerate(read.classes)),
            counts={
                name: {'images': len(own), 'objects': sum(len(s.annotations) for s in own)}
                for name, own in read.splits.items()
            },
            reports=read.reports(),
        )
        dataset.save(folder)
        write_reports(dataset.reports, str(folder / 'import.json'))
    return dataset


def export(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    to: str,
    *,
    format: str | None = None,
    val: float = 0.2,
    seed: int = 0,
    copy: bool = False,
) -> tuple[Report, ...]:
    """Write boxes and masks in another tool's format, with links to the images.

    Args:
        source: The folder with images and labels.
        dest: The folder to write, outside of the source.
        to: One of ``WRITERS``.
        format: As the further arguments, for ``bring_in``.
        val: The share of images for validation, if the source has no split.
        seed: The seed of that split.
        copy: Copy the images instead of linking them.

    Returns:
        What was read and skipped.

    Raises:
        UserError: As for ``bring_in``, or the labels are not boxes or masks of objects.
    """
    root, dest = Path(source), Path(dest)
    if Path(os.path.abspath(dest)).is_relative_to(os.path.abspath(root)):
        raise UserError(f'{dest} is in {root}, whose labels are read: choose a folder outside')
    with _folder(root, dest) as folder:
        read = _read(root, dest, folder, format, None, val, seed)
        if read.task not in ('detection', 'instances'):
            raise UserError(f'{to} takes {NEEDS["detection"]}, but {source} has {read.task} data')
        unique_names([own for samples in read.splits.values() for own in samples])
        for name, samples in read.splits.items():
            images = WRITERS[to](read.source, folder, name, samples, read.classes)
            for sample in samples:
                place(read.source, sample.record.image, folder / images / sample.name, copy)
    return read.reports()


def recognise(source: Source) -> tuple[str, list[str]]:
    """Recognise the format of a folder.

    Returns:
        The key in ``FORMATS``, and its label files.

    Raises:
        UserError: There are no labels in a known format, or in the one that was chosen.
    """
    if not source.images:
        raise UserError(
            f'{source.root} has no images: pass the folder that holds images and labels'
        )
    for name in [source.format] if source.format else FORMATS:
        if files := FORMATS[name][1](source):
            return name, files
    kinds = Counter(suffix(path) or 'without a suffix' for path in source.files).most_common(4)
    what = f'labels of the format {source.format}' if source.format else 'labels in a known format'
    raise UserError(
        f'{source.root} has no {what}, but {", ".join(f"{n} {kind}" for kind, n in kinds)}: '
        f'docs/formats.md says by what formats are recognised{source.first_problem()}'
    )


def describe(source: str | os.PathLike) -> str:
    """Say what labels a folder holds, and how to use them.

    Raises:
        UserError: It holds none that are known.
    """
    if os.path.isfile(os.path.join(source, FILE)):
        task = Dataset.load(source).task
        return f'{source} holds {task} data in the own form: pass a config that reads them'
    title = FORMATS[recognise(Source(Path(source), Path(source) / 'gcvit_mm'))[0]][0]
    command = f'gcvit-mm convert-dataset {shlex.quote(str(source))}'
    return f'{source} holds {title} labels, not a config: run {command}'


@dataclass
class _Read:
    """What was read of a source."""

    source: Source
    format: str
    task: str
    classes: list[str]
    splits: dict[str, list[Sample]]

    def reports(self) -> tuple[Report, ...]:
        """What was skipped, and the images and objects of each class in each split."""
        reports = [self.source.report]
        for name, samples in self.splits.items():
            report = Report(name, f'{self.task} data')
            report.digests = {sample.name: b'' for sample in samples}
            objects = Counter(own for sample in samples for own in sample.present)
            images = Counter(own for sample in samples for own in set(sample.present))
            counts = {'objects': objects} if self.task in ('detection', 'instances') else {}
            for own in self.classes:
                kinds = {**counts, 'images': images}
                report.classes[own] = {kind: count[own] for kind, count in kinds.items()}
            reports.append(report)
        self.source.report.digests = {
            sample.name: b'' for samples in self.splits.values() for sample in samples
        }
        return tuple(reports)


def _read(
    root: Path,
    dest: Path,
    folder: Path,
    format: str | None,
    task: str | None,
    val: float,
    seed: int,
) -> _Read:
    for key, value, known in (('format', format, FORMATS), ('task', task, TASKS)):
        if value and value not in known:
            raise ArgumentError(f'{key} {value}: choose {", ".join(known)}')
    if not 0 < val < 1:
        raise ArgumentError(f'val {val}: choose a share between 0 and 1, such as 0.2')
    source = Source(root, dest, task or '', format or '')
    format, files = recognise(source)
    title, _, read = FORMATS[format]
    source.report.source = f'{title} labels in {root}'
    read_lists(source)
    records: dict[str, Record] = {}
    for record in read(source, files):
        if record.image in records:
            what, first = 'second label file of an image', records[record.image].place
            source.report.add('warning', what, f'{record.place}: {record.image} is in {first}')
        records.setdefault(record.image, record)
    masks = {mask for own in source.masks.values() for mask in own}
    labelled = masks | records.keys() | source.labelled
    for image in source.images.values():
        if image not in labelled and not is_mask(image):
            source.report.add('note', 'image without labels: not used', image)
    if not any(has(record) for has in HAS.values() for record in records.values()):
        raise UserError(f'{title} labels in {root} cannot be used{source.first_problem()}')
    task = task or _task(source, records.values())
    if not any(HAS[task](record) for record in records.values()):
        found = f'{title} labels in {root} cannot be used for {task}, which needs {NEEDS[task]}'
        raise UserError(f'{found}{source.first_problem()}')
    names = {own.name for record in records.values() for own in record.objects}
    names |= {record.label for record in records.values() if task == 'classification'} - {''}
    classes = [*dict.fromkeys(source.classes), *sorted(names - {*source.classes})]
    if task == 'segmentation' and names and 'background' not in classes:
        classes.insert(0, 'background')
    samples = []
    for record in records.values():
        with source.entry(record.place):
            samples.append(_sample(source, record, task, classes, folder))
    if not samples:
        raise UserError(f'images in {root} cannot be used{source.first_problem()}')
    return _Read(source, format, task, classes, split(source, samples, val, seed))


def _sample(source: Source, record: Record, task: str, classes: list[str], folder: Path) -> Sample:
    """The labels of an image as a task needs them; a label map is written.

    Raises:
        Skip: The image cannot be used.
    """
    size = source.size(record.image)
    if all(record.told) and record.told != size:
        raise Skip('labels are for another size of the image', f'{record.told}, image {size}')
    name = record.image
    if task in ('segmentation', 'classification') and (name != name.strip() or '\n' in name):
        raise Skip('image has a name that a list cannot hold: rename it', repr(name))
    if task == 'classification':
        if not record.label:
            raise Skip('image without a class', name)
        return Sample(record, name, size, [], [record.label])
    annotations = annotate(source, record, size, masks=task in ('instances', 'segmentation'))
    if record.objects and not annotations:
        raise Skip('no object of the image can be used', name)
    if task != 'segmentation':
        return Sample(record, name, size, annotations, [own['name'] for own in annotations])
    labels = record.label_map() if record.label_map else paint(annotations, size, classes)
    if labels.shape[::-1] != size:
        raise Skip('label map has another size than its image', f'{labels.shape[::-1]}, {size}')
    save_map(folder / 'label_maps' / f'{name}.png', labels)
    present = [classes[value] for value in np.unique(labels) if value != maps.IGNORED]
    return Sample(record, name, size, [], present)


def _task(source: Source, records: Iterable[Record]) -> str:
    """What the labels are for."""
    objects = [own for record in records for own in record.objects]
    if not objects:
        return 'segmentation' if any(own.label_map for own in records) else 'classification'
    bare = [own for own in objects if own.mask is None and not own.crowd]
    if bare and any(own.mask for own in objects):
        what = 'objects without masks: --task instances skips them, --task detection is chosen'
        source.report.add('note', what, f'{len(bare)} of {len(objects)}')
    return 'detection' if bare else 'instances'


@contextmanager
def _folder(root: Path, dest: Path) -> Iterator[Path]:
    """A new folder that becomes ``dest`` when it is complete."""
    if not root.is_dir():
        hint = 'unpack it, and pass the folder' if root.is_file() else 'check the path'
        raise UserError(f'{root} is not a folder: {hint}')
    if (root / FILE).is_file():
        raise UserError(f'{root} is converted already: pass the folder of the original labels')
    if dest.exists() and not (dest / FILE).is_file() and (dest.is_file() or any(dest.iterdir())):
        raise UserError(f'{dest} has other files: choose a new folder to write to')
    # Hidden, so that it is never read as a source.
    folder = dest.with_name(f'.{dest.name}.{os.getpid()}.tmp')
    try:
        folder.mkdir(parents=True)
        yield folder
        if dest.exists():
            old = folder.with_suffix('.old')
            dest.rename(old)
            shutil.rmtree(old)
        folder.rename(dest)
    except OSError as error:
        what = f'{error.filename or dest} cannot be read or written: {error.strerror or error}'
        raise UserError(what) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)

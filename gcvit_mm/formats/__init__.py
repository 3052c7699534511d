"""Data sets of other formats, brought into the form that the configs read."""

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..choices import LABEL_FORMATS, TASKS
from ..datasets.check.report import Report, write_reports
from ..drawing.palette import color_of
from ..errors import ArgumentError, UserError
from ..fileio import atomic_text
from ..inference.results import write_labels
from . import maps, objects
from .dataset import FILE, Dataset
from .source import Record, Skip, Source, is_mask, suffix
from .splits import read_lists, split
from .write import WRITERS, Sample, annotate, coco, paint, place, unique_names

__all__ = ['FORMATS', 'TASKS', 'WRITERS', 'Dataset', 'bring_in', 'describe', 'export', 'recognise']

FORMATS = {name: (objects.FORMATS | maps.FORMATS)[name] for name in LABEL_FORMATS}
"""The formats in the order in which they are looked for."""
BOXES = ('detection', 'instances')
NEEDS: dict[str, tuple[str, Callable[[Record], bool]]] = {
    'detection': ('boxes or masks of objects', lambda record: bool(record.objects)),
    'instances': ('masks of objects', lambda record: any(own.mask for own in record.objects)),
    'segmentation': (
        'label maps, or masks of objects',
        lambda record: bool(record.label_map) or any(own.mask for own in record.objects),
    ),
    'classification': ('one class for each image', lambda record: bool(record.label)),
}
"""What the labels of a task are, and whether a record has them."""


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
            if read.task in BOXES:
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
        if read.task not in BOXES:
            needs, _ = NEEDS['detection']
            raise UserError(f'{to} takes {needs}, but {source} has {read.task} data')
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
        raise UserError(f'{source.root} has no images: pass the folder of images and labels')
    for name in [source.format] if source.format else FORMATS:
        if files := FORMATS[name].find(source):
            return name, files
    counts = Counter(suffix(path) or 'without a suffix' for path in source.files).most_common(4)
    what = f'labels of the format {source.format}' if source.format else 'labels in a known format'
    raise UserError(
        f'{source.root} has no {what}, but {", ".join(f"{n} {kind}" for kind, n in counts)}: '
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
    title = FORMATS[recognise(Source(Path(source), Path(source) / 'gcvit_mm'))[0]].title
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
            digests = {sample.name: b'' for sample in samples}
            objects = Counter(own for sample in samples for own in sample.present)
            images = Counter(own for sample in samples for own in set(sample.present))
            kinds = {'objects': objects} if self.task in BOXES else {}
            kinds['images'] = images
            classes = {own: {kind: n[own] for kind, n in kinds.items()} for own in self.classes}
            reports.append(Report(name, f'{self.task} data', digests=digests, classes=classes))
            self.source.report.digests |= digests
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
    title = f'{FORMATS[format].title} labels in {root}'
    source.report.source = title
    read_lists(source)
    records: dict[str, Record] = {}
    for record in FORMATS[format].read(source, files):
        if record.image in records:
            what, first = 'second label file of an image', records[record.image].place
            source.report.add('warning', what, f'{record.place}: {record.image} is in {first}')
        records.setdefault(record.image, record)
    masks = {mask for own in source.masks.values() for mask in own}
    labelled = masks | records.keys() | source.labelled
    for image in source.images.values():
        if image not in labelled and not is_mask(image):
            source.report.add('note', 'image without labels: not used', image)
    if not any(has(record) for _, has in NEEDS.values() for record in records.values()):
        raise UserError(f'{title} cannot be used{source.first_problem()}')
    task = task or _task(source, records.values())
    needs, has = NEEDS[task]
    if not any(map(has, records.values())):
        what = f'{title} cannot be used for {task}, which needs {needs}'
        raise UserError(f'{what}{source.first_problem()}')
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
    """The labels of an image as a task needs them; a label map is written."""
    name, size = record.image, source.size(record.image)
    if all(record.told) and record.told != size:
        raise Skip('labels are for another size of the image', f'{record.told}, image {size}')
    if task not in BOXES and (name != name.strip() or '\n' in name):
        raise Skip('image has a name that a list cannot hold: rename it', repr(name))
    if task == 'classification':
        if not record.label:
            raise Skip('image without a class', name)
        return Sample(record, name, size, [], [record.label])
    annotations = annotate(source, record, size, masks=task != 'detection')
    if record.objects and not annotations:
        raise Skip('no object of the image can be used', name)
    if task != 'segmentation':
        return Sample(record, name, size, annotations, [own['name'] for own in annotations])
    labels = record.label_map() if record.label_map else paint(annotations, size, classes)
    if labels.shape[::-1] != size:
        raise Skip('label map has another size than its image', f'{labels.shape[::-1]}, {size}')
    write_labels(folder / 'label_maps' / f'{name}.png', labels)
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

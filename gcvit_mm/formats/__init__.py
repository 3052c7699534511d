"""Data sets of other formats, brought into the form that the configs read."""

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..choices import LABEL_FORMATS, TASKS
from ..datasets.check.images import upright_size
from ..datasets.check.report import Report, write_reports
from ..drawing.palette import color_of
from ..errors import ArgumentError, UserError
from ..fileio import atomic_text
from ..inference.results import write_labels
from . import maps, objects
from .dataset import FILE, Dataset
from .source import Record, Skip, Source, is_mask, suffix
from .splits import Splits, read_lists, split
from .tiles import cut
from .write import WRITERS, annotate, coco, paint, place, unique_names

__all__ = ['FORMATS', 'TASKS', 'WRITERS', 'Dataset', 'bring_in', 'describe', 'export']

FORMATS = {name: (objects.FORMATS | maps.FORMATS)[name] for name in LABEL_FORMATS}
"""The formats in the order in which they are looked for."""
AnyPath: TypeAlias = str | os.PathLike
BOXES = ('detection', 'instances')
LEAST = 32
"""Minimum side of a tile, in pixels."""
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
    source: AnyPath,
    dest: AnyPath | None = None,
    *,
    copy: bool = False,
    tile: int | None = None,
    **options: Any,
) -> Dataset:
    """Recognise the labels of a folder, and write them in the form that the configs read.

    The source is never changed. Images stay where they are, unless ``copy`` or ``tile`` is set.

    Args:
        source: The folder with images and labels.
        dest: The folder to write; default: ``gcvit_mm`` in the source. One that was written before
            is replaced when the new one is complete.
        copy: Copy the images too.
        tile: Side in pixels of the tiles that images are cut into, with their labels.
        options: ``format``, one of ``FORMATS``, which is recognised by default; ``task``, one of
            ``TASKS``, by default what the labels are for; if the source has no split, ``val``, the
            share of images for validation (0.2), and ``seed`` (0).

    Returns:
        The data set. Its ``reports`` say what was read and skipped; ``import.json`` has them too.

    Raises:
        UserError: No format is recognised, a label file is broken, no image has a label that can
            be used, or ``dest`` cannot be written.
    """
    root, dest = Path(source), Path(dest) if dest else Path(source) / 'gcvit_mm'
    with _converted(root, dest, **options) as (read, folder, splits):
        if tile is not None and tile < LEAST:
            raise ArgumentError(f'tile {tile}: pass at least {LEAST} pixels')
        if tile and read.task == 'classification':
            raise ArgumentError(f'tile {tile}: tiles are for boxes, masks and label maps')
        for name, records in splits.items():
            if tile:
                records[:] = [part for own in records for part in cut(read, own, folder, tile)]
            for record in records if copy and not tile else ():
                place(root / record.image, folder / 'images' / record.name, True)
            if read.task in BOXES:
                atomic_text(folder / f'{name}.json', coco(read, records))
                continue
            lines = [record.name for record in records]
            if read.task == 'classification':
                lines = [f'{own.name} {read.classes.index(own.label)}' for own in records]
            atomic_text(folder / f'{name}.txt', ''.join(f'{line}\n' for line in lines))
        colours = enumerate(map(read.palette.get, read.classes))
        dataset = Dataset(
            root=dest,
            images=dest / 'images' if copy or tile else Path(os.path.abspath(root)),
            format=read.format,
            task=read.task,
            classes=tuple(read.classes),
            palette=tuple(colour or color_of((), number) for number, colour in colours),
            counts={
                name: {'images': len(own), 'objects': sum(len(s.annotations) for s in own)}
                for name, own in splits.items()
            },
            reports=_reports(read, splits),
        )
        dataset.save(folder)
        write_reports(dataset.reports, str(folder / 'import.json'))
    return dataset


def export(
    source: AnyPath, dest: AnyPath, to: str, *, copy: bool = False, **options: Any
) -> tuple[Report, ...]:
    """Write boxes and masks in another tool's format, with links to the images.

    Args:
        source: The folder with images and labels.
        dest: The folder to write, outside of the source.
        to: One of ``WRITERS``.
        copy: Copy the images instead of linking them.
        options: As for ``bring_in``.

    Returns:
        What was read and skipped.

    Raises:
        UserError: As for ``bring_in``, or the labels are not boxes or masks of objects.
    """
    root, dest = Path(source), Path(dest)
    if Path(os.path.abspath(dest)).is_relative_to(os.path.abspath(root)):
        raise UserError(f'{dest} is in {root}, whose labels are read: choose a folder outside')
    with _converted(root, dest, **options) as (read, folder, splits):
        if read.task not in BOXES:
            needs, _ = NEEDS['detection']
            raise UserError(f'{to} takes {needs}, but {source} has {read.task} data')
        unique_names([own for records in splits.values() for own in records])
        for name, records in splits.items():
            images = WRITERS[to](read, folder, name, records)
            for record in records:
                place(root / record.image, folder / images / record.name, copy)
    return _reports(read, splits)


def describe(source: AnyPath) -> str:
    """Say what labels a folder holds, and how to use them.

    Raises:
        UserError: It holds none that are known.
    """
    if os.path.isfile(os.path.join(source, FILE)):
        task = Dataset.load(source).task
        return f'{source} holds {task} data in the own form: pass a config that reads them'
    read = Source(Path(source), Path(source) / 'gcvit_mm')
    _recognise(read)
    command = f'gcvit-mm convert-dataset {shlex.quote(str(source))}'
    return f'{source} holds {FORMATS[read.format].title} labels, not a config: run {command}'


@contextmanager
def _converted(
    root: Path,
    dest: Path,
    *,
    format: str | None = None,
    task: str | None = None,
    val: float = 0.2,
    seed: int = 0,
) -> Iterator[tuple[Source, Path, Splits]]:
    """Read a source; a new folder becomes ``dest`` when it is complete."""
    for key, value, known in (('format', format, FORMATS), ('task', task, TASKS)):
        if value and value not in known:
            raise ArgumentError(f'{key} {value}: choose {", ".join(known)}')
    if not 0 < val < 1:
        raise ArgumentError(f'val {val}: choose a share between 0 and 1, such as 0.2')
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
        source = Source(root, dest, task or '', format or '')
        yield source, folder, split(source, _records(source, folder), val, seed)
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


def _recognise(source: Source) -> list[str]:
    """Set the format of a source, and return its label files."""
    if not source.images:
        raise UserError(f'{source.root} has no images: pass the folder of images and labels')
    for name in [source.format] if source.format else FORMATS:
        if files := FORMATS[name].find(source):
            source.format = name
            return files
    counts = Counter(suffix(path) or 'without a suffix' for path in source.files).most_common(4)
    what = f'labels of the format {source.format}' if source.format else 'labels in a known format'
    raise UserError(
        f'{source.root} has no {what}, but {", ".join(f"{n} {kind}" for kind, n in counts)}: '
        f'docs/formats.md says by what formats are recognised{source.first_problem()}'
    )


def _records(source: Source, folder: Path) -> list[Record]:
    """Read the images that can be used; set the task and the classes of the source."""
    files = _recognise(source)
    title = source.report.source = f'{FORMATS[source.format].title} labels in {source.root}'
    read_lists(source)
    by_image: dict[str, Record] = {}
    for record in FORMATS[source.format].read(source, files):
        first = by_image.setdefault(record.image, record)
        if first is not record:
            where = f'{record.place}: {record.image} is in {first.place}'
            source.report.add('warning', 'second label file of an image', where)
    records = [*by_image.values()]
    masks = {mask for own in source.masks.values() for mask in own}
    labelled = masks | by_image.keys() | source.labelled
    for image in source.images.values():
        if image not in labelled and not is_mask(image):
            source.report.add('note', 'image without labels: not used', image)
    if not any(has(record) for _, has in NEEDS.values() for record in records):
        raise UserError(f'{title} cannot be used{source.first_problem()}')
    source.task = source.task or _task(source, records)
    needs, has = NEEDS[source.task]
    if not any(map(has, records)):
        what = f'{title} cannot be used for {source.task}, which needs {needs}'
        raise UserError(f'{what}{source.first_problem()}')
    names = {own.name for record in records for own in record.objects}
    names |= {own.label for own in records if own.label and source.task == 'classification'}
    source.classes = [*dict.fromkeys(source.classes), *sorted(names - {*source.classes})]
    if source.task == 'segmentation' and names and 'background' not in source.classes:
        source.classes.insert(0, 'background')
    usable = []
    for record in records:
        with source.entry(record.place):
            _prepare(source, record, folder)
            usable.append(record)
    if not usable:
        raise UserError(f'images in {source.root} cannot be used{source.first_problem()}')
    return usable


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


def _prepare(source: Source, record: Record, folder: Path) -> None:
    """Add to a record what the task needs; a label map is written."""
    task, name, size = source.task, record.image, source.open(record.image, upright_size)
    record.name, record.size, record.present = name, size, [record.label]
    if all(record.told) and record.told != size:
        raise Skip('labels are for another size of the image', f'{record.told}, image {size}')
    if task not in BOXES and (name != name.strip() or '\n' in name):
        raise Skip('image has a name that a list cannot hold: rename it', repr(name))
    if task == 'classification':
        if not record.label:
            raise Skip('image without a class', name)
        return
    record.annotations = annotate(source, record, masks=task != 'detection')
    record.present = [own['name'] for own in record.annotations]
    if record.objects and not record.annotations:
        raise Skip('no object of the image can be used', name)
    if task == 'segmentation':
        labels = record.label_map() if record.label_map else paint(record, source.classes)
        if labels.shape[::-1] != size:
            raise Skip('label map has another size than its image', f'{labels.shape[::-1]}, {size}')
        write_labels(folder / 'label_maps' / f'{name}.png', labels)
        present = np.setdiff1d(labels, [maps.IGNORED])
        record.present = [source.classes[value] for value in present]
        record.annotations = []


def _reports(source: Source, splits: Splits) -> tuple[Report, ...]:
    """What was skipped, and the images and objects of each class in each split."""
    reports = [source.report]
    for name, records in splits.items():
        digests = {record.name: b'' for record in records}
        objects = Counter(own for record in records for own in record.present)
        images = Counter(own for record in records for own in set(record.present))
        report = Report(name, f'{source.task} data', digests=digests)
        for own in source.classes:
            counts = {'objects': objects[own]} if source.task in BOXES else {}
            report.classes[own] = {**counts, 'images': images[own]}
        reports.append(report)
        source.report.digests |= digests
    return tuple(reports)

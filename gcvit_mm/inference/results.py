"""A folder of predictions for many images, which an interrupted run resumes from."""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from ..errors import UserError
from ..fileio import atomic_write
from .prediction import Object, Prediction

TOP = 5
COLUMNS = {
    'detection': ('file', 'frame', 'class', 'score', 'x1', 'y1', 'x2', 'y2'),
    'segmentation': ('file', 'frame', 'class', 'share'),
    'classification': ('file', 'frame', 'rank', 'class', 'score'),
}


class Results:
    """The results of a run in ``results.jsonl``, with a line of JSON for each image or frame.

    The line of an image is appended after its other files are written, and marks the image as
    done. A video is done when a further line after its frames says so. A folder with results of an
    interrupted run with equal settings is resumed; other settings raise a ``UserError``.

    Attributes:
        done: ``Input.file`` of the inputs that are done.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._lines = self.folder / 'results.jsonl'
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'folder {folder} cannot be created: {error}') from error
        self._check(dict(settings))
        self.done: set[str] = set()
        self._drop_incomplete()

    def _check(self, settings: dict[str, Any]) -> None:
        file = self.folder / 'run.json'
        if not file.exists():
            write(file, json.dumps(settings, indent=1).encode())
            return
        try:
            before = json.loads(file.read_text())
        except (ValueError, RecursionError) as error:
            raise UserError(f'{file} is damaged: give another folder ({error})') from error
        changes = [
            f'{name} was {before.get(name)}, is {settings.get(name)}'
            for name in {**before, **settings}
            if before.get(name) != settings.get(name)
        ]
        if changes:
            raise UserError(
                f'{self.folder} has results of other settings ({"; ".join(changes)}): give another '
                'folder, or the former settings'
            )

    def _drop_incomplete(self) -> None:
        """Drop the lines of files that are not done, and a truncated line."""
        numbers: dict[str, list[int]] = defaultdict(list)
        number = -1
        with open(self._lines, 'ab+') as file:
            file.seek(0)
            for number, line in enumerate(file):
                try:
                    entry = json.loads(line)
                except ValueError:
                    numbers[''] = [number]
                    break
                numbers[entry['file']].append(number)
                if entry['done']:
                    self.done.add(entry['file'])
                    del numbers[entry['file']]
        dropped = set().union(*numbers.values())
        if dropped:
            with atomic_write(self._lines) as kept, open(self._lines, 'rb') as file:
                lines = enumerate(islice(file, number + 1))
                kept.writelines(line for i, line in lines if i not in dropped)

    def add(self, entry: Mapping[str, Any], done: bool = True) -> None:
        """Append the results of an image or a frame; ``done`` marks the end of its file."""
        with open(self._lines, 'a') as file:
            file.write(json.dumps({**entry, 'done': done}) + '\n')

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of all images and frames."""
        with open(self._lines) as file:
            for line in file:
                entry = json.loads(line)
                if 'width' in entry:  # the end of a video has none
                    yield entry


# --- Entries ----------------------------------------------------------------------------------


def entry_of(prediction: Prediction, shape: Sequence[int]) -> dict[str, Any]:
    """Convert a prediction to plain data for JSON.

    Returns:
        ``height``, ``width`` and either ``objects``, as COCO annotations without ids, ``shares``,
        classes and their shares of the image, or ``top``, classes and their scores.
    """
    size = dict(height=int(shape[0]), width=int(shape[1]))
    if prediction.objects is not None:
        return dict(size, objects=list(map(_plain, prediction.objects)))
    if prediction.label_map is not None:
        return dict(size, shares=prediction.shares())
    return dict(size, top=prediction.top(TOP))


def _plain(one: Object) -> dict[str, Any]:
    x1, y1, x2, y2 = one.box
    # In the format of mmdet's CocoMetric.
    plain = dict(label=one.label, score=one.score, bbox=[x1, y1, x2 - x1, y2 - y1])
    if one.mask:
        plain['segmentation'] = dict(
            size=list(one.mask['size']), counts=one.mask['counts'].decode()
        )
    return plain


# --- Files ------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> None:
    """Write a file, and create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an image (H, W, 3) of uint8 in RGB, in the format of the suffix."""
    _, content = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    write(path, content.tobytes())


def write_labels(path: Path, labels: np.ndarray, palette: Sequence[tuple] = ()) -> None:
    """Write a label map (H, W) as a PNG with labels as values, and perhaps a palette."""
    fits = labels.max() < 256
    image = Image.fromarray(labels.astype(np.uint8 if fits else np.uint16))
    if palette and fits:
        image.putpalette([part for color in palette for part in color])
    content = io.BytesIO()
    image.save(content, 'PNG')
    write(path, content.getvalue())


def write_coco(path: Path, entries: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """Write detections as COCO annotations with scores."""
    images: list[dict] = []
    number = 0
    with atomic_write(path) as file:
        file.write(b'{"annotations": [')
        for entry in entries:
            images.append(_image(entry, len(images) + 1))
            for one in entry['objects']:
                file.write(b',\n' if number else b'\n')
                number += 1
                file.write(json.dumps(_annotation(one, number, len(images))).encode())
        categories = [dict(id=i, name=name) for i, name in enumerate(classes, start=1)]
        rest = json.dumps(dict(images=images, categories=categories), indent=0)
        file.write(b'\n],\n' + rest[1:].encode() + b'\n')


def _image(entry: Mapping[str, Any], number: int) -> dict[str, Any]:
    frame = {} if entry['frame'] is None else dict(frame=entry['frame'])
    size = dict(width=entry['width'], height=entry['height'])
    return dict(id=number, file_name=entry['file'], **size, **frame)


def _annotation(one: Mapping[str, Any], number: int, image: int) -> dict[str, Any]:
    rle = one.get('segmentation')
    area = float(coco.area(rle)) if rle else one['bbox'][2] * one['bbox'][3]
    return dict(
        id=number,
        image_id=image,
        category_id=one['label'] + 1,
        **{key: one[key] for key in ('bbox', 'score', 'segmentation') if key in one},
        area=area,
        iscrowd=0,
    )


def write_csv(
    path: Path,
    entries: Iterable[Mapping[str, Any]],
    task: str,
    classes: Sequence[str],
    score: float,
) -> None:
    """Write a table with a row for each object with a minimum score, or for each class."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS[task])
    with atomic_write(path) as file:
        for entry in entries:
            for row in _rows(entry, classes, score):
                table.writerow((entry['file'], entry['frame'], *row))
            file.write(text.getvalue().encode())
            text.seek(0)
            text.truncate()


def _rows(entry: Mapping[str, Any], classes: Sequence[str], minimum: float) -> Iterator[tuple]:
    def name(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    for one in entry.get('objects', ()):
        if one['score'] >= minimum:
            x, y, width, height = one['bbox']
            box = (f'{value:.1f}' for value in (x, y, x + width, y + height))
            yield name(one['label']), f'{one["score"]:.4f}', *box
    for label, share in entry.get('shares', ()):
        yield name(label), f'{share:.6f}'
    for rank, (label, score) in enumerate(entry.get('top', ()), start=1):
        yield rank, name(label), f'{score:.4f}'

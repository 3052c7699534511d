"""Large images with small objects, cut into tiles."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from ..datasets.load_image import eight_bits
from ..inference.results import write_labels
from ..inference.tiling.tiles import Window, windows
from .geometry import encode, rectangle, run_lengths
from .maps import IGNORED
from .source import Record, Source

SEEN = 0.3
"""Share of its area of which an object needs less in a tile to be ignored there."""


def cut(source: Source, record: Record, folder: Path, tile: int) -> Iterator[Record]:
    """Write the tiles of an image, and its label map's, and yield a record for each.

    Neighbours overlap by a quarter of a tile, as in ``gcvit-mm infer --tile``.
    """
    width, height = record.size
    image = source.open(record.image, lambda opened: eight_bits(opened).copy())
    map_file = folder / 'label_maps' / f'{record.name}.png'
    labels = None
    if source.task == 'segmentation':
        with Image.open(map_file) as opened:
            labels = np.array(opened)
        map_file.unlink()
    for window in (one for row in windows(height, width, tile, tile // 4) for one in row):
        name = f'{record.name}_{window.x1}_{window.y1}.png'
        file = folder / 'images' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image.crop((window.x1, window.y1, window.x2, window.y2)).save(file)
        inside = (_inside(own, window, record.size) for own in record.annotations)
        annotations = [own for own in inside if own]
        present = [own['name'] for own in annotations]
        if labels is not None:
            part = window.of(labels)
            write_labels(folder / 'label_maps' / f'{name}.png', part)
            present = [source.classes[value] for value in np.setdiff1d(part, [IGNORED])]
        size = window.x2 - window.x1, window.y2 - window.y1
        yield replace(record, name=name, size=size, annotations=annotations, present=present)


def _inside(annotation: dict, window: Window, size: tuple[int, int]) -> dict | None:
    """The part of an annotation in a tile; size is the image's."""
    x, y, w, h = annotation['bbox']
    left, top = max(x, window.x1), max(y, window.y1)
    right, bottom = min(x + w, window.x2), min(y + h, window.y2)
    if right - left < 1 or bottom - top < 1:
        return None
    corner = np.array([window.x1, window.y1])
    box = rectangle(*(left, top) - corner, *(right, bottom) - corner)
    whole, area = annotation['area'], box[2] * box[3]
    mask = annotation['segmentation']
    if isinstance(mask, list) and mask and (left, top, right, bottom) == (x, y, x + w, y + h):
        mask, area = [(np.reshape(p, (-1, 2)) - corner).ravel().tolist() for p in mask], whole
    elif mask:
        mask = run_lengths(window.of(mask_utils.decode(encode(mask, size))))
        area, box = float(mask_utils.area(mask)), mask_utils.toBbox(mask).tolist()
        if not area:
            return None
    crowd = annotation['iscrowd'] or int(area < SEEN * whole)
    return {**annotation, 'bbox': box, 'area': area, 'segmentation': mask, 'iscrowd': crowd}

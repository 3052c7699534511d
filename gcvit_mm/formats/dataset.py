"""A data set in the form that the configs read, which ``bring_in`` writes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets.check.report import Report
from ..errors import UserError
from ..fileio import atomic_text

FILE = 'dataset.json'


@dataclass(frozen=True)
class Dataset:
    """What a folder of ``bring_in`` holds.

    dataset.json            this record
    import.json             what was read, what was skipped and why
    train.json, val.json    COCO files, for detection and instances
    train.txt, val.txt      lists of images, with labels for classification
    label_maps/**.png       for segmentation: numbers of classes, 255 is ignored
    images/                 only if the images are copied, or cut into tiles
    """

    root: Path  # the folder
    images: Path  # the folder that names of images in lists and COCO files refer to
    format: str  # the format of the source, as in ``FORMATS``
    task: str  # one of ``TASKS``; 'instances' are objects with masks
    classes: tuple[str, ...]  # in the order of the labels
    palette: tuple[tuple[int, int, int], ...]  # R, G, B of each class
    counts: dict[str, dict[str, int]]  # of each split: its number of images and objects
    reports: tuple[Report, ...] = ()  # what was read and skipped; only of ``bring_in``

    def ann_file(self, split: str) -> Path:
        """The COCO file or list of a split, for configs and COCO evaluators."""
        boxes = self.task in ('detection', 'instances')
        return self.root / f'{split}.{"json" if boxes else "txt"}'

    def settings(self, split: str) -> dict[str, Any]:
        """The settings of a split for the data set of a config: all but its type and pipeline."""
        boxes = self.task in ('detection', 'instances')
        settings: dict[str, Any] = {
            'data_root': '',
            'ann_file': str(self.ann_file(split)),
            'data_prefix': {'img' if boxes else 'img_path': str(self.images)},
            'metainfo': {'classes': self.classes, 'palette': self.palette},
        }
        if self.task == 'segmentation':
            settings['data_prefix']['seg_map_path'] = str(self.root / 'label_maps')
            settings |= {'img_suffix': '', 'seg_map_suffix': '.png', 'reduce_zero_label': False}
        return settings

    def save(self, folder: Path) -> None:
        """Write ``dataset.json`` to a folder that will have the path ``root``."""
        keys = ('format', 'task', 'classes', 'palette', 'counts')
        record = {key: getattr(self, key) for key in keys}
        record['images'] = os.path.relpath(self.images, self.root)
        atomic_text(folder / FILE, json.dumps(record, indent=1, ensure_ascii=False) + '\n')

    @classmethod
    def load(cls, root: str | os.PathLike) -> 'Dataset':
        """Read a folder that ``bring_in`` has written.

        Raises:
            UserError: The folder has no valid ``dataset.json``.
        """
        file = Path(root) / FILE
        try:
            record = json.loads(file.read_text(encoding='utf-8'))
            record['images'] = Path(os.path.normpath(Path(root) / record['images']))
            record['classes'] = tuple(record['classes'])
            record['palette'] = tuple(map(tuple, record['palette']))
            return cls(Path(root), **record)
        except (OSError, ValueError, LookupError, TypeError) as error:
            what = f'{file} cannot be read ({error}): run gcvit-mm convert-dataset again'
            raise UserError(what) from error

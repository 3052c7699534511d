"""Files with the prediction of each test image: label maps and pictures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import barrier
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..config import datasets_of
from ..drawing.ground_truth import draw_truth
from ..drawing.palette import class_colors, class_names
from ..drawing.predictions import as_rgb, draw_prediction
from ..errors import UserError
from ..inference.images import Pipeline
from ..inference.inputs import result_names
from ..inference.prediction import Prediction
from ..inference.results import write_labels, write_picture

SHORT_SIDE = 480
"""Minimum length of a picture's shorter side in pixels, for legible captions."""
MINIMUM_SCORE = 0.3


class PredictionFilesHook(Hook):
    """Writes files for each test image, named like the image in the folder of all test images.

    Args:
        maps: Folder for label maps with the values of the data set; None for none.
        pictures: Folder for pictures of the ground truth, if there is any, beside the prediction.
    """

    def __init__(self, maps: str | None = None, pictures: str | None = None) -> None:
        self.maps, self.pictures = maps, pictures

    def before_test_epoch(self, runner: Runner) -> None:
        """Choose the names of the files."""
        dataset: Any = runner.test_dataloader.dataset
        paths = [dataset.get_data_info(i).get('img_path') for i in range(len(dataset))]
        if None in paths:
            raise UserError(
                f'{type(dataset).__name__} has no image files: omit --show-dir and --out'
            )
        self.names = names_of_images(paths)
        self.values = values_of_labels(dataset.metainfo)
        (settings, *_) = datasets_of(runner.cfg.test_dataloader)
        self.classes = class_names(dataset.metainfo)
        self.palette = class_colors(runner.cfg, settings, self.classes)
        if self.pictures:
            self.read = Pipeline(settings.pipeline).read

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Write the files of a batch."""
        for output in outputs or ():
            sample = output.cpu()
            name = self.names[sample.img_path]
            prediction = Prediction.of(sample)
            if self.maps:
                write_labels(Path(self.maps, f'{name}.png'), self.values[prediction.label_map])
            if self.pictures:
                picture = self._draw(sample, prediction)
                write_picture(Path(self.pictures, f'{name}.png'), picture)

    def after_test(self, runner: Runner) -> None:
        """Wait until all processes have written their files."""
        barrier()

    def _draw(self, sample: Any, prediction: Prediction) -> np.ndarray:
        image = as_rgb(self.read(sample.img_path))
        scale = max(1, -(-SHORT_SIDE // min(image.shape[:2])))
        settings = self.classes, self.palette
        drawn = draw_prediction(image, prediction, *settings, MINIMUM_SCORE, scale)
        has_objects = 'bboxes' in sample.get('gt_instances', ())
        if not (has_objects or 'gt_sem_seg' in sample or 'gt_label' in sample):
            return drawn
        truth = draw_truth(image, sample, *settings, in_input=False, shape=image.shape[:2])
        return np.hstack([cv2.resize(truth, drawn.shape[1::-1]), drawn])


def names_of_images(paths: Sequence[str]) -> dict[str, str]:
    """Choose the names of the files of test images, relative to the folder of all images."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    files = {path: Path(os.path.relpath(path, folder or '.')) for path in paths}
    names = result_names(files.values())
    return {path: names[file] for path, file in files.items()}


def values_of_labels(metainfo: Mapping[str, Any]) -> np.ndarray:
    """The value in the label maps of a data set for each label of a model.

    Args:
        metainfo: The metainfo of mmseg's data set: ``label_map`` has the labels of its values if
            only some classes are used, and ``reduce_zero_label`` tells whether they begin at 1.
    """
    values = np.arange(2**16)
    for value, label in (metainfo.get('label_map') or {}).items():
        values[label] = value
    return values + bool(metainfo.get('reduce_zero_label'))

"""Predictions for images, from Python."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from threading import RLock
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from PIL import Image
from tqdm import tqdm

from ..config import default_scope, task_of, test_dataset
from ..drawing.predictions import draw_prediction
from ..errors import UserError
from ..weights.mm_loaders import safe_loaders
from ..work_dir import find_model
from .images import ImageLike, Pipeline
from .model import load_model
from .prediction import Prediction
from .tiling.tiled import blend_labels, merge_objects
from .tiling.tiles import windows


class Predictor:
    """A model that predicts on images: a detector, segmenter or classifier.

    It prepares images by the test pipeline of the model's config, and predicts what
    ``tools/test.py`` does. Threads may share it: they take turns.

    Args:
        model: A name of the zoo's, a config file, or the work folder of a training.
        checkpoint: A file or ``gcvit://NAME``. By default, of a work folder the best checkpoint,
            or else the newest whole one; of the zoo's classifiers of ImageNet the published
            weights.
        device: 'cpu', 'cuda:1' and so on; by default a GPU if there is one.
        tile: Side in pixels of the windows in which larger images are looked at; None looks at
            every image as a whole.
        overlap: How many pixels neighbouring windows share at least; by default a quarter.

    Attributes:
        task: 'detection', 'segmentation' or 'classification'.
        classes: The names of the classes; empty where they have none.
        palette: A colour (R, G, B) for each of them.
        has_masks: Whether what it detects has masks.
        model: The ``nn.Module``.
        cfg: The config.
        checkpoint: The file that the weights are from.

    Raises:
        UserError: The model or its checkpoint cannot be read, or they do not fit each other.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        checkpoint: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> None:
        self.cfg, self.checkpoint = find_model(model, checkpoint)
        self.task = task_of(self.cfg)
        self.tile, self.overlap = _checked(tile, overlap, self.task)
        self.model: Any
        with safe_loaders():
            self.model, meta = load_model(self.cfg, self.checkpoint, _usable(device))
        self.classes, self.palette = meta['classes'], meta['palette']
        self.has_masks = self.task == 'detection' and bool(getattr(self.model, 'with_mask', False))
        with default_scope(self.cfg):
            self.pipeline = Pipeline(test_dataset(self.cfg).pipeline)
        self._lock = RLock()

    def __call__(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 1) -> list[Any]:
        """Predict.

        Args:
            images: One or several, each a path, an array (H, W, 3) of uint8 in BGR as
                ``cv2.imread`` gives it, or an image of Pillow's in any mode.
            batch_size: How many the model takes at once, if they follow each other and have one
                size. Images are never padded to a common size: predictions do not depend on it.

        Returns:
            A data sample of the model's package for each image, on the CPU. It has
            ``pred_instances`` with ``bboxes`` (x1, y1, x2, y2), ``scores``, ``labels`` and perhaps
            ``masks`` (n, H, W), of an image in tiles a list in COCO's run-length encoding; or
            ``pred_sem_seg.data`` (1, H, W); or ``pred_score``.

        Raises:
            UserError: An image cannot be read.
        """
        if isinstance(images, str | os.PathLike | np.ndarray | Image.Image):
            images = [images]
        samples = []
        for some in chunks(images, batch_size):
            pixels = [self.read(image) for image in some]
            for image, sample in zip(some, self.predict(pixels, batch_size), strict=True):
                if isinstance(image, str | os.PathLike):
                    sample.set_metainfo(dict(img_path=os.fspath(image)))
                samples.append(sample)
        return samples

    def read(self, image: ImageLike) -> np.ndarray:
        """The pixels of an image, (H, W, 3) in BGR, as the config's data set reads them.

        Raises:
            UserError: It cannot be read.
        """
        return self.pipeline.read(image)

    def predict(self, pixels: Sequence[np.ndarray], batch_size: int = 1) -> Iterator[Any]:
        """Predict on what ``read`` gave; as calling this object does."""
        whole: list[np.ndarray] = []
        for image in pixels:
            if self.tile and max(image.shape[:2]) > self.tile:
                yield from self._predict_whole(whole, batch_size)
                whole = []
                yield self._predict_tiled(image, batch_size)
            else:
                whole.append(image)
        yield from self._predict_whole(whole, batch_size)

    def _predict_whole(self, images: Iterable[np.ndarray], batch_size: int) -> Iterator[Any]:
        for some in chunks(images, batch_size):
            data = [self.pipeline.prepare(image) for image in some]
            for _, same in groupby(data, lambda item: item['inputs'].shape):
                with self._lock, torch.no_grad():
                    found = self.model.test_step(pseudo_collate(list(same)))
                yield from (sample.cpu() for sample in found)

    def _predict_tiled(self, image: np.ndarray, batch_size: int) -> Any:
        assert self.tile and self.overlap
        height, width = image.shape[:2]
        grid = windows(height, width, self.tile, self.overlap)
        flat = [window for row in grid for window in row]
        bar = tqdm(flat, unit='window', leave=False, disable=None)  # None: not into files
        views = (window.of(image) for window in bar)
        samples = self._predict_whole(views, batch_size)
        if self.task == 'detection':
            return merge_objects(samples, grid, (height, width))
        return blend_labels(samples, grid, (height, width), self.model)

    def draw(
        self, image: ImageLike, sample: Any, score: float = 0.3, scale: float = 1
    ) -> np.ndarray:
        """Draw a prediction on its image.

        Args:
            image: As it was predicted on.
            sample: The prediction: a data sample, or a ``Prediction`` made of one.
            score: Objects are drawn from this score up.
            scale: Size of the picture, in that of the image; less where a side of it would be
                longer than 4096 pixels. Captions do not grow with it: more is legible on small
                images.

        Returns:
            The picture, (H, W, 3) of uint8 in RGB.
        """
        pixels = self.pipeline.read(image)[..., ::-1]
        prediction = Prediction.of(sample)
        return draw_prediction(pixels, prediction, self.classes, self.palette, score, scale)


def _usable(device: str | torch.device | None) -> torch.device:
    try:
        chosen = torch.device(device or get_device())
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'device {device} cannot be used: {reason}') from error
    return chosen


def _checked(tile: int | None, overlap: int | None, task: str) -> tuple[int | None, int | None]:
    if tile is None:
        return None, None
    if task == 'classification':
        raise UserError('tile: a classifier looks at an image as a whole')
    overlap = tile // 4 if overlap is None else overlap
    if not 0 < overlap < tile:
        raise UserError(f'tile {tile}, overlap {overlap}: the overlap is from 1 to tile - 1 pixels')
    return tile, overlap


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

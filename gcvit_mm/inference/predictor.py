"""Inference on images."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from ..drawing.predictions import as_rgb, draw_prediction
from ..errors import UserError
from ..weights.mm_loaders import safe_loaders
from ..work_dir import find_model
from .images import ImageLike, Pipeline
from .model import channels_of, load_model
from .prediction import Prediction
from .tiling.data_samples import blend_labels, merge_objects
from .tiling.tiles import windows

MOST_IMAGES = 8
"""Most images of a batch whose size is not given."""
CPU_PIXELS = 2**18
"""Most pixels of such a batch on a CPU, where larger ones are no faster: docs/inference.md."""


class Predictor:
    """Runs a detector, segmenter or classifier on images.

    The test pipeline of the model's config prepares images, so that predictions equal those of
    ``tools/test.py``. Threads may share a predictor; a lock serialises their calls.

    Args:
        model: Name of a zoo model, config file, or work directory of a run.
        checkpoint: A file or ``gcvit://NAME``. By default, the best checkpoint of a work directory
            or else its newest complete one, and the published weights of an ImageNet classifier.
        device: 'cpu', 'cuda:1' and so on; by default a GPU if there is one.
        tile: Side in pixels of the tiles that larger images are split into; None disables tiles.
        overlap: Minimum overlap of neighbouring tiles, in pixels; by default a quarter of a tile.

    Attributes:
        task: 'detection', 'segmentation' or 'classification'.
        classes: Names of the classes; empty if the model has none.
        palette: A colour (R, G, B) for each class.
        has_masks: Whether predictions have instance masks.
        model: The ``nn.Module``.
        cfg: The config.
        checkpoint: The file of the weights.

    Raises:
        UserError: The model or its checkpoint cannot be read, or the two do not match.
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
        self._device = _usable(device)
        with safe_loaders():
            self.model, meta = load_model(self.cfg, self.checkpoint, self._device)
        self.classes, self.palette = meta['classes'], meta['palette']
        self.has_masks = self.task == 'detection' and bool(getattr(self.model, 'with_mask', False))
        with default_scope(self.cfg):
            self.pipeline = Pipeline(test_dataset(self.cfg).pipeline, channels_of(self.model))
        self._lock = RLock()
        self._bytes_per_pixel = 0.0  # the most memory that a batch took on a GPU

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], batch_size: int | None = 1
    ) -> list[Any]:
        """Predict on images.

        Args:
            images: One or several images, each a path, an array (H, W, C) of uint8 in BGR like
                those of ``cv2.imread``, or a Pillow image of any mode.
            batch_size: Maximum number of successive images of equal size in a batch. Images are
                not padded to a common size, so predictions do not depend on the batch size. None
                takes up to eight: on a CPU, of ``CPU_PIXELS`` pixels together; on a GPU, as many
                as half of its free memory holds, by what the batches before took.

        Returns:
            A data sample of the model's package for each image, on the CPU. It has
            ``pred_instances`` with ``bboxes`` (x1, y1, x2, y2), ``scores``, ``labels`` and, for
            models with masks, ``masks``, which are (n, H, W) or, for an image in tiles, a list of
            COCO run-length encodings; or ``pred_sem_seg.data`` (1, H, W); or ``pred_score``.

        Raises:
            UserError: An image cannot be read, or the model takes another number of channels.
        """
        if isinstance(images, str | os.PathLike | np.ndarray | Image.Image):
            images = [images]
        samples = []
        for batch in chunks(images, batch_size or MOST_IMAGES):
            pixels = [self.read(image) for image in batch]
            for image, sample in zip(batch, self.predict(pixels, batch_size), strict=True):
                if isinstance(image, str | os.PathLike):
                    sample.set_metainfo(dict(img_path=os.fspath(image)))
                samples.append(sample)
        return samples

    def read(self, image: ImageLike) -> np.ndarray:
        """Read an image, (H, W, C) of uint8 in BGR; see ``Pipeline.read``."""
        return self.pipeline.read(image)

    def predict(self, pixels: Sequence[np.ndarray], batch_size: int | None = 1) -> Iterator[Any]:
        """Predict on arrays of ``read``, and yield a data sample for each image."""
        whole: list[np.ndarray] = []
        for image in pixels:
            if self.tile and max(image.shape[:2]) > self.tile:
                yield from self._predict_whole(whole, batch_size)
                whole = []
                yield self._predict_tiled(image, batch_size)
            else:
                whole.append(image)
        yield from self._predict_whole(whole, batch_size)

    def _predict_whole(self, images: Iterable[np.ndarray], batch_size: int | None) -> Iterator[Any]:
        for chunk in chunks(images, batch_size or MOST_IMAGES):
            data = [self.pipeline.prepare(image) for image in chunk]
            for shape, equal in groupby(data, lambda item: item['inputs'].shape):
                while batch := list(islice(equal, batch_size or self._fitting(*shape[-2:]))):
                    with self._lock, torch.no_grad(), self._measuring(len(batch), *shape[-2:]):
                        samples = self.model.test_step(pseudo_collate(batch))
                    yield from (sample.cpu() for sample in samples)

    def _fitting(self, height: int, width: int) -> int:
        """The size of a batch, if it is not given; the first one on a GPU has one image."""
        if self._device.type != 'cuda':
            return max(1, CPU_PIXELS // (height * width))
        free = torch.cuda.mem_get_info(self._device)[0] + torch.cuda.memory_reserved(self._device)
        free -= torch.cuda.memory_allocated(self._device)
        need = self._bytes_per_pixel * height * width
        return min(MOST_IMAGES, max(1, int(free / 2 / need))) if need else 1

    @contextmanager
    def _measuring(self, count: int, height: int, width: int) -> Iterator[None]:
        if self._device.type != 'cuda':
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        yield
        used = torch.cuda.max_memory_allocated(self._device) - before
        self._bytes_per_pixel = max(self._bytes_per_pixel, used / (count * height * width))

    def _predict_tiled(self, image: np.ndarray, batch_size: int | None) -> Any:
        assert self.tile and self.overlap
        height, width = image.shape[:2]
        grid = windows(height, width, self.tile, self.overlap)
        flat = [window for row in grid for window in row]
        bar = tqdm(flat, unit='tile', leave=False, disable=None)  # None: only on a terminal
        crops = (window.of(image) for window in bar)
        samples = self._predict_whole(crops, batch_size)
        if self.task == 'detection':
            return merge_objects(samples, grid, (height, width))
        return blend_labels(samples, grid, (height, width), self.model)

    def draw(
        self, image: ImageLike, sample: Any, score: float = 0.3, scale: float = 1
    ) -> np.ndarray:
        """Draw a prediction on its image.

        Args:
            image: The image; of more than three channels, the first three are shown.
            sample: The prediction, as a data sample or a ``Prediction``.
            score: Minimum score of the objects that are drawn.
            scale: Scale of the picture, whose sides are limited to 4096 pixels. The font size
                does not depend on it, so enlarged small images have more room for captions.

        Returns:
            The picture, (H, W, 3) of uint8 in RGB.
        """
        pixels = as_rgb(self.pipeline.read(image))
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
        raise UserError(f'tile {tile} is not for classifiers: omit it')
    overlap = tile // 4 if overlap is None else overlap
    if not 0 < overlap < tile:
        raise UserError(f'overlap {overlap} does not fit tile {tile}: choose 1 to {tile - 1}')
    return tile, overlap


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

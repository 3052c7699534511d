"""Images from files, arrays and Pillow, and the test pipeline that prepares them."""

import os
from typing import Any, TypeAlias

import cv2
import numpy as np
from mmcv.image.io import _pillow2array
from mmcv.transforms import Compose
from mmengine.config import ConfigDict
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from ..datasets.load_image import in_eight_bits
from ..errors import UserError

ImageLike: TypeAlias = str | os.PathLike | np.ndarray | Image.Image
LOADERS = ('LoadWholeImage', 'LoadImageFromFile')


class Pipeline:
    """The test pipeline of a config, for images without annotations.

    Args:
        steps: The pipeline's config; its transforms are built in the current ``default_scope``.

    Raises:
        UserError: The pipeline does not begin by loading an image.
    """

    def __init__(self, steps: list[ConfigDict]) -> None:
        load = str(steps[0].type).split('.')[-1]
        if load not in LOADERS:
            raise UserError(
                f'the test pipeline of the config begins with {load}: begin it with '
                f'{" or ".join(LOADERS)}'
            )
        self._to_float32 = steps[0].get('to_float32', False)
        self._load = TRANSFORMS.build({**steps[0], 'to_float32': False})
        kept = [step for step in steps[1:] if not str(step.type).split('.')[-1].startswith('Load')]
        self._prepare = Compose([TRANSFORMS.build(step) for step in kept])

    def read(self, image: ImageLike) -> np.ndarray:
        """Read an image; a file is read like the images of the config's data set.

        Args:
            image: A file, an array (H, W, 3) of uint8 in BGR like those of ``cv2.imread``, or a
                Pillow image of any mode.

        Returns:
            (H, W, 3) of uint8 in BGR; an array is returned without a copy.

        Raises:
            UserError: The file cannot be read, or the array has another type or shape.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise UserError(
                    f'an image is an array of {image.dtype} with shape {image.shape}: pass uint8 '
                    'with shape (height, width, 3), in BGR'
                )
            return image
        if isinstance(image, Image.Image):
            return np.ascontiguousarray(_pillow2array(in_eight_bits(image)))
        path = os.fspath(image)
        try:
            pixels = self._load(dict(img_path=path))['img']
        except Exception as error:  # a damaged file may raise anything
            reason: object = error.__cause__ if isinstance(error, UserError) else error
            if isinstance(reason, UnidentifiedImageError):
                reason = 'its format is unknown'
            raise UserError(f'image {path} cannot be read ({reason})') from error
        return np.ascontiguousarray(pixels)

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Prepare an image for a model, as ``inputs`` and ``data_samples``.

        Raises:
            UserError: The image is so narrow that resizing leaves no pixel.
        """
        shape = image.shape[:2]
        if self._to_float32:
            image = image.astype(np.float32)
        results = dict(img=image, img_path=None, img_id=0, img_shape=shape, ori_shape=shape)
        try:
            return self._prepare(results)
        except cv2.error as error:
            raise UserError(
                f'an image of {shape[1]} x {shape[0]} pixels cannot be prepared for the model: '
                f'{error}'
            ) from error

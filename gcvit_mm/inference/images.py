"""Images from files, arrays and Pillow, and the test pipeline that prepares them."""

import os
from typing import Any, TypeAlias

import cv2
import numpy as np
from mmcv.transforms import Compose
from mmengine.config import ConfigDict
from mmengine.registry import TRANSFORMS
from PIL import Image

from ..datasets.load_image import pixels_of, reason
from ..errors import UserError

ImageLike: TypeAlias = str | os.PathLike | np.ndarray | Image.Image
LOADERS = ('LoadWholeImage', 'LoadImageFromFile')


class Pipeline:
    """The test pipeline of a config, for images without annotations.

    Its transforms are built in the current ``default_scope``. The number of channels that the model
    takes is None if it is not known. A pipeline that does not begin by loading an image raises a
    ``UserError``.
    """

    def __init__(self, steps: list[ConfigDict], channels: int | None = None) -> None:
        load = str(steps[0].type).split('.')[-1]
        if load not in LOADERS:
            raise UserError(
                f'the test pipeline of the config begins with {load}: begin it with '
                f'{" or ".join(LOADERS)}'
            )
        self._channels, self._color_type = channels, steps[0].get('color_type', 'color')
        self._to_float32 = steps[0].get('to_float32', False)
        self._load = TRANSFORMS.build({**steps[0], 'to_float32': False})
        kept = [step for step in steps[1:] if not str(step.type).split('.')[-1].startswith('Load')]
        self._prepare = Compose([TRANSFORMS.build(step) for step in kept])

    def read(self, image: ImageLike) -> np.ndarray:
        """Read an image; a file is read like the images of the config's data set.

        Args:
            image: A file, an array (H, W, C) or (H, W) of uint8 whose first channels are B, G, R,
                like those of ``cv2.imread``, or a Pillow image of any mode.

        Returns:
            An array like that; an array is returned without a copy.

        Raises:
            UserError: The image cannot be read, or the array has another type or shape.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
                raise UserError(
                    f'an image is an array of {image.dtype} with shape {image.shape}: pass uint8 '
                    f'with shape (height, width, {self._channels or "channels"}), in BGR'
                )
            return image
        name = 'image'
        try:
            if isinstance(image, Image.Image):
                pixels = pixels_of(image, self._color_type)
            else:
                name = f'image {os.fspath(image)}'
                pixels = self._load(dict(img_path=os.fspath(image)))['img']
        except Exception as error:  # a damaged file may raise anything
            cause = error.__cause__ if isinstance(error, UserError) else error
            raise UserError(f'{name} cannot be read ({reason(cause or error)})') from error
        return np.ascontiguousarray(pixels)

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Prepare an image for a model, as ``inputs`` and ``data_samples``.

        Raises:
            UserError: The image is so narrow that resizing leaves no pixel, or it has another
                number of channels than the model takes.
        """
        shape = image.shape[:2]
        if self._to_float32:
            image = image.astype(np.float32)
        results = dict(img=image, img_path=None, img_id=0, img_shape=shape, ori_shape=shape)
        try:
            data = self._prepare(results)
        except cv2.error as error:
            raise UserError(
                f'an image of {shape[1]} x {shape[0]} pixels cannot be prepared for the model: '
                f'{error}'
            ) from error
        channels = len(data['inputs'])
        if channels != (self._channels or channels):
            raise UserError(
                f'the image has {channels} channel(s), but the model takes {self._channels}: pass '
                'images like those of its training'
            )
        return data

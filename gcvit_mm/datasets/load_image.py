"""Image loading that detects truncated files."""

import logging
from io import BytesIO
from typing import Literal

import numpy as np
from mmcv.image.io import _pillow2array
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from PIL import Image

from ..errors import UserError


def in_eight_bits(image: Image.Image) -> Image.Image:
    """Reduce an image of 16 bits per channel, such as a microscope's, to the upper 8 bits.

    Pillow's own conversion to RGB turns all values above 255 white.
    """
    if not image.mode.startswith('I;16'):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@TRANSFORMS.register_module()
class LoadWholeImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, but truncated images are detected.

    OpenCV silently fills the missing part of a JPEG with grey; Pillow, used here, raises an error.

    Args:
        on_bad: What to do with an unreadable image. 'raise' stops with its name; 'skip' makes the
            data set draw another image; 'blank' returns a black image, for evaluation, where its
            objects count as missed.
        bad_images_file: File to append the paths of unreadable images to, one per line.
        max_bad_images: Maximum number of unreadable images; None for no limit.
        to_float32: Return float32 instead of uint8.
        color_type: Flag of mmcv's ``imfrombytes``.
        backend_args: Arguments of mmengine's file backend.
    """

    def __init__(
        self,
        on_bad: Literal['raise', 'skip', 'blank'] = 'raise',
        bad_images_file: str | None = None,
        max_bad_images: int | None = None,
        to_float32: bool = False,
        color_type: str = 'color',
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(
            to_float32=to_float32,
            color_type=color_type,
            imdecode_backend='pillow',
            backend_args=backend_args,
        )
        self.on_bad = on_bad
        self.bad_images_file = bad_images_file
        self.max_bad_images = max_bad_images

    def transform(self, results: dict) -> dict | None:
        """Read ``results['img_path']`` into ``img``, ``img_shape`` and ``ori_shape``.

        Raises:
            UserError: The image cannot be read and ``on_bad`` is 'raise', or more than
                ``max_bad_images`` images cannot be read.
        """
        try:
            return self._load(results)
        except (OSError, ValueError, SyntaxError, AssertionError) as error:
            path = results['img_path']
            if self.on_bad == 'raise':
                raise UserError(
                    f'image {path} cannot be read ({error}): replace it, or pass '
                    '--skip-bad-images to skip unreadable images'
                ) from error
        print_log(f'bad image {path} is skipped', logger='current', level=logging.WARNING)
        if self.bad_images_file:
            self._note(self.bad_images_file, path)
        return None if self.on_bad == 'skip' else self._blank(results)

    def _load(self, results: dict) -> dict:
        content = fileio.get(results['img_path'], backend_args=self.backend_args)
        with Image.open(BytesIO(content)) as image:
            pixels = _pillow2array(in_eight_bits(image), self.color_type)
        results['img'] = pixels.astype(np.float32) if self.to_float32 else pixels
        results['img_shape'] = results['ori_shape'] = pixels.shape[:2]
        return results

    def _note(self, file: str, path: str) -> None:
        with open(file, 'a') as appended:
            appended.write(f'{path}\n')
        if self.max_bad_images is None:
            return
        with open(file) as paths:  # other processes append to it too
            count = len(set(paths))
        if count > self.max_bad_images:
            raise UserError(
                f'{count} images cannot be read, but --skip-bad-images allows '
                f'{self.max_bad_images}: replace the images listed in {file}'
            )

    def _blank(self, results: dict) -> dict:
        if 'height' in results:
            shape = results['height'], results['width']
        else:
            with Image.open(results['img_path']) as image:
                shape = image.size[::-1]
        results['img'] = np.zeros((*shape, 3), np.float32 if self.to_float32 else np.uint8)
        results['img_shape'] = results['ori_shape'] = shape
        return results

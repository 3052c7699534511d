"""Loading of images that notices damage."""

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
    """The image itself; one of 16 bits, as of microscopes, with their upper half.

    Pillow's own conversion to RGB makes everything above 255 white.
    """
    if not image.mode.startswith('I;16'):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@TRANSFORMS.register_module()
class LoadWholeImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that refuses an image of which a part is missing.

    OpenCV fills what is missing of a JPEG with grey and says nothing; Pillow raises.

    Args:
        on_bad: What an unreadable image does. 'raise' stops with its name; 'skip' leaves it out,
            the data set then draws another one; 'blank' puts a black image in its place, for
            evaluation, where its objects count as missed.
        bad_images_file: Where the paths of unreadable images are appended, one a line.
        max_bad_images: How many of them there may be; None for any number.
        to_float32: Return float32 instead of uint8.
        color_type: mmcv's ``imfrombytes`` flag.
        backend_args: mmengine's file backend.
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
            UserError: The image cannot be read and ``on_bad`` is 'raise', or there are more than
                ``max_bad_images`` of them.
        """
        try:
            return self._load(results)
        except (OSError, ValueError, SyntaxError, AssertionError) as error:
            path = results['img_path']
            if self.on_bad == 'raise':
                raise UserError(
                    f'image {path} cannot be read ({error}): replace it, or pass '
                    '--skip-bad-images to go on without such images'
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
        with open(file) as listed:  # other processes append to it too
            count = len(set(listed))
        if count > self.max_bad_images:
            raise UserError(
                f'{count} images cannot be read, more than the {self.max_bad_images} that '
                f'--skip-bad-images allows; they are listed in {file}'
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

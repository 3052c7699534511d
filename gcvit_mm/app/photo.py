"""Photos as people upload them."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError

# Pillow reads more, by decoders that few people use and that few have looked at.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')
LARGEST = 1600
"""Longest side that a model is given, in pixels: masks and label maps have the photo's size."""
MOST_PIXELS = 80_000_000


def read_photo(path: str | os.PathLike) -> Image.Image:
    """Read an upload, made smaller where a side of it is longer than ``LARGEST``.

    Args:
        path: The file; its name appears in messages, what it ends in does not matter.

    Returns:
        The image in RGB, the right way up; of an animation its first frame.

    Raises:
        UserError: It is no image, is damaged, or has more than ``MOST_PIXELS``.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            image.draft(None, (LARGEST, LARGEST))  # lets JPEGs be decoded at a part of their size
            if image.mode == 'F':
                raise ValueError('floating-point numbers: save it as 8 or 16 bits')
            photo = _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise UserError(
            f'{name} has too many pixels: at most {MOST_PIXELS // 10**6} million are read'
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f'{name} is not an image that can be read here: take a JPEG, PNG, WebP, BMP, TIFF '
            'or GIF file'
        ) from error
    except FileNotFoundError as error:
        raise UserError(f'{name} is no longer here: drop it again') from error
    # What a damaged file raises depends on the byte that is hit.
    except Exception as error:
        raise UserError(f'{name} cannot be read, is it damaged? ({error})') from error
    photo.thumbnail((LARGEST, LARGEST))
    return photo


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):  # 16 bits a pixel, which Pillow would cut off at 255
        high = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(high).convert('RGB')
    return image.convert('RGB')

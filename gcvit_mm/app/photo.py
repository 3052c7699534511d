"""Reads uploaded images."""

import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..datasets.load_image import eight_bits
from ..errors import UserError

# Pillow's decoders of other formats are rarely used and less tested against malicious files.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')
LARGEST = 1600
"""Maximum side of an image in pixels, which limits the memory of masks and label maps."""
MAX_PIXELS = 80_000_000


def read_photo(path: str | os.PathLike) -> Image.Image:
    """Read an uploaded image as RGB, and reduce it if a side is longer than ``LARGEST``.

    The suffix of the file is ignored. The image is rotated by its EXIF orientation; of an
    animation, it is the first frame.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            file.draft(None, (LARGEST, LARGEST))  # a large JPEG is decoded at a reduced size
            image = eight_bits(file).convert('RGB')
    except Image.DecompressionBombError as error:
        raise UserError(
            f'{name} has too many pixels: reduce it to {MAX_PIXELS // 10**6} million'
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f'{name} cannot be read: drop an image of the type {", ".join(FORMATS)}'
        ) from error
    except FileNotFoundError as error:
        raise UserError(f'{name} was deleted: drop it again') from error
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f'{name} cannot be read and may be damaged: {error}') from error
    image.thumbnail((LARGEST, LARGEST))
    return image

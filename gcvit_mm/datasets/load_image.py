"""Image loading that detects truncated files, and the meaning of pixel values."""

import logging
import re
import sys
from io import BytesIO
from typing import Literal

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageOps

from ..errors import ArgumentError, UserError

MODES = {'color': 'RGB', 'grayscale': 'L', 'unchanged': None}
"""Pillow's mode for each of mmcv's colour types."""
AS_STORED = '_ignore_orientation'
"""Suffix of a colour type: the image is not turned upright."""
PLAIN = ('L', 'LA', 'RGB', 'RGBA', 'RGBX')
TYPES = (
    *('AVIF', 'BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'MPO', 'PCX', 'PNG', 'PPM', 'SGI', 'TGA'),
    *('TIFF', 'WEBP', None),
)
"""Pillow's types of files that are decoded, None for images in memory; EPS files are programs."""
MARKER = re.compile(rb'\xff[\x02-\xcf\xd9-\xfe]')
"""Markers of a JPEG that are not part of its pixels, but begin segments."""
SCAN, END = b'\xff\xda', b'\xff\xd9'
MOST_SCANS = 100
"""Maximum number of scans of a JPEG; encoders write about ten."""
DEPTHS = (8, 12, 16)
"""Numbers of bits that cameras fill of the 16 or 32 bits of a grey value."""


def pixels_of(image: Image.Image, color_type: str = 'color') -> np.ndarray:
    """Convert a Pillow image to the array that training, evaluation and inference get.

    Args:
        image: An image of any mode, which is turned upright.
        color_type: 'color', 'grayscale', or 'unchanged' to keep grey images and transparency.

    Returns:
        (H, W, C) of uint8, which begins with the channels B, G, R, or (H, W) if it is grey.

    Raises:
        ValueError: ``eight_bits`` cannot convert the image.
    """
    image = eight_bits(image, upright=not color_type.endswith(AS_STORED))
    mode = MODES[color_type.removesuffix(AS_STORED)]
    pixels = np.array(image.convert(mode) if mode else image)
    if pixels.ndim == 3 and pixels.shape[2] > 2:  # NumPy takes ten times as long
        code = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        pixels = cv2.cvtColor(pixels, code)
    return pixels


def eight_bits(image: Image.Image, upright: bool = True) -> Image.Image:
    """Convert an image to grey or RGB of 8 bits, perhaps with a further channel.

    Of 16 or 32 bits, the upper eight are kept of those that the image fills: 8, 12 or 16. Pillow
    itself would turn all values above 255 white.

    Args:
        image: An image of any mode.
        upright: Turn it by its EXIF orientation.

    Returns:
        The image; ``info['bits']`` is the number of bits that grey values of 16 or 32 bits fill.

    Raises:
        ValueError: Its values are not integers of up to 16 bits, or 16-bit colours are too dark.
    """
    check_decoding(image)
    is_deep = ';16' in str(getattr(image, 'tile', ''))  # known until it is loaded
    file, image.filename = getattr(image, 'filename', ''), ''  # type: ignore[attr-defined]
    image.load()  # with the name, Pillow would map the file into memory, and garble turned TIFFs
    image.filename = file  # type: ignore[attr-defined]
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == 'F':
        raise ValueError('its values are floating-point numbers: convert it to 8 or 16 bits')
    if image.mode.startswith('I'):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        bits = next((bits for bits in DEPTHS if high < 2**bits), None)
        if low < 0 or bits is None:
            raise ValueError(f'its values are {low} to {high}: convert it to 8 or 16 bits')
        grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
        grey.info['bits'] = bits
        return grey
    # Pillow has kept the upper 8 of 16 bits.
    if is_deep and np.asarray(image.convert('RGB')).max() < 2 ** (12 - 8):
        raise ValueError('its 16-bit colours are all below 4096, so nearly black: convert it to 8')
    if image.mode in PLAIN:
        return image
    if image.mode == '1':
        return image.convert('L')
    return image.convert('RGBA' if image.has_transparency_data else 'RGB')


def check_decoding(image: Image.Image) -> None:
    """Check that decoding an opened file takes little time and runs no program.

    Raises:
        ValueError: It is of a type that is not in ``TYPES``, or a JPEG of more than ``MOST_SCANS``
            scans, each of which may take as long as an image, but only a few bytes of the file.
    """
    file = getattr(image, 'fp', None)
    if image.format not in TYPES:
        raise ValueError(f'it is of the type {image.format}: convert it to PNG')
    if image.format not in ('JPEG', 'MPO') or file is None:
        return
    file.seek(0)
    data, place, scans = file.read(), 0, 0
    while (marker := MARKER.search(data, place)) and marker[0] != END:
        scans += marker[0] == SCAN
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], 'big')
    if scans > MOST_SCANS:
        raise ValueError(f'it has {scans} scans, more than {MOST_SCANS}: save it again')


def reason(error: BaseException) -> str:
    """The message of an error without the path, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = ' '.join(str(error).split())
    return 'not an image' if 'cannot identify' in message else message or type(error).__name__


@TRANSFORMS.register_module()
class LoadWholeImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, but truncated images are detected.

    OpenCV silently fills the missing part of a JPEG with grey; Pillow, used here, raises an error.
    ``pixels_of`` converts other types of images to 8 bits.

    Args:
        on_bad: What to do with an unreadable image. 'raise' stops with its name; 'skip' makes the
            data set draw another image; 'blank' returns a black image, for evaluation, where its
            objects count as missed.
        bad_images_file: File to append the paths of unreadable images to, one per line.
        max_bad_images: Maximum number of unreadable images; None for no limit.
        to_float32: Return float32 instead of uint8.
        color_type: As for ``pixels_of``; with the suffix '_ignore_orientation', images are not
            turned upright.
        backend_args: Arguments of mmengine's file backend.

    Raises:
        ArgumentError: There is no such ``color_type``.
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
        if color_type.removesuffix(AS_STORED) not in MODES:
            raise ArgumentError(f'color_type {color_type}: choose {", ".join(MODES)}')
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
                ``max_bad_images`` images cannot be read, or the annotation file has another size.
        """
        path = results['img_path']
        try:
            pixels = self._load(path)
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            self._report(f'image {path}', reason(error), 'replace it', path)
            if self.on_bad == 'skip':
                return None
            pixels = self._blank(results)
        height, width = shape = pixels.shape[:2]
        told = results.get('height', height), results.get('width', width)
        if told != shape:
            raise UserError(
                f'image {path}: the annotation file says {told[1]} x {told[0]} pixels, the image '
                f'has {width} x {height}: correct width and height in the file'
            )
        results['img'] = pixels.astype(np.float32) if self.to_float32 else pixels
        results['img_shape'] = results['ori_shape'] = shape
        return results

    def _load(self, path: str) -> np.ndarray:
        content = fileio.get(path, backend_args=self.backend_args)
        with Image.open(BytesIO(content)) as image:
            return pixels_of(image, self.color_type)

    def _report(self, name: str, why: str, cure: str, path: str) -> None:
        """Log and list a file that cannot be read, or raise a ``UserError`` for it."""
        if self.on_bad == 'raise':
            raise UserError(
                f'{name} cannot be read ({why}): {cure}, or pass --skip-bad-images to skip '
                'unreadable images'
            ) from sys.exception()
        print_log(f'bad {name} is skipped', logger='current', level=logging.WARNING)
        if self.bad_images_file:
            self._note(self.bad_images_file, path)

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

    def _blank(self, results: dict) -> np.ndarray:
        """Return a black image of the size that its annotations have."""
        mode, size = _header(results['img_path']) or ('RGB', (32, 32))
        _, size = _header(results.get('seg_map_path')) or (mode, size)
        size = results.get('width', size[0]), results.get('height', size[1])
        return pixels_of(Image.new(mode if mode in PLAIN else 'RGB', size), self.color_type)


def _header(path: str | None) -> tuple[str, tuple[int, int]] | None:
    """Read the mode and the size of an image file, if it has them."""
    try:
        with Image.open(path) as image:  # type: ignore[arg-type]
            return image.mode, image.size
    except Exception:  # decoders raise all kinds of errors for damaged files
        return None

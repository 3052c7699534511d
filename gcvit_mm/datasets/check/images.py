"""Reading and checking of image files."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image
from tqdm import tqdm

from ..load_image import eight_bits, reason
from .report import Finding, Report

Task = TypeVar('Task')
Result = TypeVar('Result')

EXIF_ORIENTATION, EXIF_QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


class ReadImage(NamedTuple):
    """An image file that can be read to its end.

    Attributes:
        path: The image file.
        width: Width in pixels after rotation by the EXIF orientation, as training loads it.
        height: Height in pixels, likewise.
        digest: Hash of the file.
    """

    path: str
    width: int
    height: int
    digest: bytes


def read_image(path: str) -> ReadImage | str:
    """Decode an image file to its end, and check that training can use its values.

    Returns:
        The image, or the reason why it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            # A JPEG is decoded completely, but at an eighth of its size, which is a third faster.
            image.draft(None, (1, 1))
            eight_bits(image, upright=False)
            # Pillow turns TIFF files, and their size, by itself.
            if image.getexif().get(EXIF_ORIENTATION) in EXIF_QUARTER_TURNS:
                width, height = height, width
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        return reason(error)
    return ReadImage(path, width, height, hashlib.blake2b(data, digest_size=16).digest())


def unreadable(image: str, place: str) -> Finding:
    """The finding for an image that ``read_image`` cannot read."""
    return Finding('error', 'image cannot be read whole', f'{place}: {image}')


def in_parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], label: str
) -> Iterator[Result]:
    """Yield the results of a function for all tasks, computed in threads, with a progress bar.

    Threads are enough because decoders, which take most of the time, release the GIL.
    """
    with ThreadPool() as pool:
        results = pool.imap(function, tasks, chunksize=8)
        # disable=None shows no bar if stderr is not a terminal.
        yield from tqdm(
            results, total=len(tasks), desc=label, unit='image', leave=False, disable=None
        )


def add_image(report: Report, image: ReadImage) -> None:
    """Add the size and the digest of an image to a report."""
    report.digests[image.path] = image.digest
    report.sizes.setdefault('image width', []).append(image.width)
    report.sizes.setdefault('image height', []).append(image.height)


def relative(path: str, root: str | None) -> str:
    """The path relative to the folder of the data set, if it is inside, for printing."""
    inside = os.path.relpath(path, root) if root else path
    return path if inside.startswith('..') else inside

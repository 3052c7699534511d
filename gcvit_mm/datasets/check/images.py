"""Reading of image files for a check."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image
from tqdm import tqdm

from .report import Finding, Report

Task = TypeVar('Task')
Result = TypeVar('Result')

EXIF_ORIENTATION, EXIF_QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


class ReadImage(NamedTuple):
    """An image that was read whole.

    Attributes:
        path: Its file.
        width: In pixels, as it is loaded: turned as its EXIF data say.
        height: In pixels.
        digest: Of the file's bytes.
    """

    path: str
    width: int
    height: int
    digest: bytes


def read_image(path: str) -> ReadImage | str:
    """Decode an image file to its end.

    Returns:
        The image, or why it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if image.getexif().get(EXIF_ORIENTATION) in EXIF_QUARTER_TURNS:
                width, height = height, width
            # Of a JPEG, all the data are decoded, but to an eighth of the size: faster by a third.
            image.draft(None, (1, 1))
            image.load()
    except Exception as error:  # damaged files raise whatever their decoder comes upon
        return reason(error)
    return ReadImage(path, width, height, hashlib.blake2b(data, digest_size=16).digest())


def reason(error: Exception) -> str:
    """Give an error's message without the path, which is printed beside it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = ' '.join(str(error).split())
    return 'not an image' if 'cannot identify' in message else message or type(error).__name__


def unreadable(image: str, place: str) -> Finding:
    """What is to be said of an image that ``read_image`` gives a reason for."""
    return Finding('error', 'image cannot be read whole', f'{place}: {image}')


def in_parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], label: str
) -> Iterator[Result]:
    """Call a function on each of many tasks, in a thread per core, and show how far it is.

    Threads do: the decoders, which take most of the time, let others run.
    """
    with ThreadPool() as pool:
        results = pool.imap(function, tasks, chunksize=8)
        # disable=None: no bar where stderr is not a terminal.
        yield from tqdm(
            results, total=len(tasks), desc=label, unit='image', leave=False, disable=None
        )


def add_image(report: Report, image: ReadImage) -> None:
    """Note the size and the digest of an image."""
    report.digests[image.path] = image.digest
    report.sizes.setdefault('image width', []).append(image.width)
    report.sizes.setdefault('image height', []).append(image.height)


def relative(path: str, root: str | None) -> str:
    """Give a path as it is to be printed: without the data set's folder."""
    inside = os.path.relpath(path, root) if root else path
    return path if inside.startswith('..') else inside

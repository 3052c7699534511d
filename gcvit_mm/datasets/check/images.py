"""Reading and checking of image files."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple, TypeVar

from mmengine.dataset import BaseDataset
from PIL import Image
from tqdm import tqdm

from ...errors import UserError
from ..load_image import eight_bits, reason
from .report import Report

Task = TypeVar('Task')
Result = TypeVar('Result')

NO_FILE = 'No such file'
EXIF_ORIENTATION, EXIF_QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


class ReadImage(NamedTuple):
    """An image file that can be read to its end."""

    path: str  # the image file
    width: int  # width in pixels after rotation by the EXIF orientation, as training loads it
    height: int  # height in pixels, likewise
    digest: bytes  # hash of the file
    bits: int  # bits that grey values of 16 or 32 bits fill; 0 for other images


def read_image(path: str) -> ReadImage | str:
    """Decode an image file to its end, and check that training can use its values.

    Returns:
        The image, or the reason why it cannot be read.
    """
    if not os.path.isfile(path):  # reading a pipe would wait for ever
        return NO_FILE
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            # A JPEG is decoded completely, but at an eighth of its size, which is a third faster.
            image.draft(None, (1, 1))
            bits = eight_bits(image, upright=False).info.get('bits', 0)
            # Only now, because the EXIF data of a PNG are known when it is decoded.
            width, height = upright_size(image, size)
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        return reason(error)
    return ReadImage(path, width, height, hashlib.blake2b(data, digest_size=16).digest(), bits)


def upright_size(image: Image.Image, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Width and height of an image after rotation by its EXIF orientation, ``size`` before it."""
    size = size or image.size
    turned = image.getexif().get(EXIF_ORIENTATION) in EXIF_QUARTER_TURNS
    # Pillow turns TIFF files, and their size, by itself.
    return size[::-1] if turned and image.format != 'TIFF' else size


def list_entries(dataset: BaseDataset) -> list[dict]:
    """The entries of a data set, from its folders or lists."""
    try:
        return dataset.load_data_list()
    except Exception as error:  # data sets raise different errors
        message = f'{type(error).__name__}: {" ".join(str(error).split())}'
        where = f'{dataset.ann_file or dataset.data_prefix} ({type(dataset).__name__})'
        raise UserError(f'{where} cannot be loaded: {message}') from error


def missing_files(paths: Iterable[str]) -> dict[str, str]:
    """The paths that do not exist, and the reason; each folder is listed once, which is fast."""
    folders: dict[str, set[str]] = {}
    missing = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            entries = os.scandir(folder or '.') if os.path.isdir(folder or '.') else ()
            folders[folder] = {e.name for e in entries if e.is_file(follow_symlinks=False)}
        # Links are followed here. Some file systems take a name in other letters too.
        if name not in folders[folder] and not os.path.isfile(path):
            missing[path] = NO_FILE
    return missing


def check_hidden(report: Report, paths: Iterable[str], folder: str) -> None:
    """Report images in hidden folders, such as Jupyter's copies, which data sets use too."""
    for path in paths:
        if f'{os.sep}.' in path[len(folder) :]:
            what = 'image in a hidden folder, which is used too: delete the folder'
            report.add('error', what, relative(path, folder))


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


def check_images(report: Report, paths: Sequence[str], root: str | None) -> None:
    for path, image in zip(paths, in_parallel(read_image, paths, report.name), strict=True):
        add_image(report, image, relative(path, root))


def add_image(report: Report, image: ReadImage | str, place: str) -> None:
    """Add the size and the digest of an image, or why it cannot be read, to a report."""
    if isinstance(image, str):
        report.add('error', 'image cannot be read whole', f'{place}: {image}')
        return
    report.digests[image.path] = image.digest
    report.sizes.setdefault('image width', []).append(image.width)
    report.sizes.setdefault('image height', []).append(image.height)
    if image.bits:
        depths = report.sizes.setdefault('bits of 16-bit grey', [])
        depths.append(image.bits)
        if image.bits != depths[0]:
            what = 'image fills other bits than the first, so it is scaled differently: convert all'
            report.add('warning', what, f'{place}: {image.bits} bits, first {depths[0]}')


def relative(path: str, root: str | None) -> str:
    """The path relative to the folder of the data set, if it is inside, for printing."""
    inside = os.path.relpath(path, root) if root else path
    return path if inside.startswith('..') else inside

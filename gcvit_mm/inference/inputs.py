"""The images and videos that command-line arguments name."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

IMAGES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')


@dataclass(frozen=True)
class Input:
    """An input file.

    Attributes:
        path: Absolute path.
        file: Path relative to the common folder of all inputs, which identifies the input.
        name: Name of its results: ``file``, without its suffix if that is unique.
    """

    path: Path
    file: str
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the file is a video."""
        return self.path.suffix.lower() in VIDEOS


def find_inputs(arguments: Sequence[str]) -> tuple[Path, list[Input]]:
    """Find the images and videos that arguments name.

    Args:
        arguments: Files, folders (searched recursively) and patterns (``*``, ``?``, ``**``).

    Returns:
        The common folder of all inputs, and the inputs without duplicates, sorted by path.

    Raises:
        UserError: An argument names no image or video.
    """
    folders, paths = [], set()
    for argument in arguments:
        folder, files = _search(argument)
        if not files:
            raise UserError(
                f'{argument} names no image or video: give a file, a folder or a pattern of '
                f'{" ".join(IMAGES + VIDEOS)} files'
            )
        folders.append(folder)
        paths.update(files)
    root = Path(os.path.commonpath(folders))
    return root, _named(sorted(paths), root)


def _search(argument: str) -> tuple[Path, list[Path]]:
    """Find the folder that an argument names, and the inputs in it."""
    path = Path(os.path.abspath(argument))
    if path.is_dir():
        return path, [file for file in path.rglob('*') if _is_input(file)]
    if path.is_file():
        return path.parent, [path]
    folder = path
    while glob.has_magic(str(folder)):
        folder = folder.parent
    files = map(Path, glob.glob(str(path), recursive=True)) if folder != path else ()
    return folder, [file for file in files if _is_input(file)]


def _is_input(path: Path) -> bool:
    return path.suffix.lower() in IMAGES + VIDEOS and path.is_file()


def _named(paths: Iterable[Path], root: Path) -> list[Input]:
    inputs = [(path, path.relative_to(root)) for path in paths]
    stems = Counter(file.with_suffix('') for _, file in inputs)

    def name(file: Path) -> Path:
        # Results of clip.mp4 must not collide with those of images in a folder clip.
        keeps_suffix = file.suffix.lower() in VIDEOS or stems[file.with_suffix('')] > 1
        return file if keeps_suffix else file.with_suffix('')

    return [Input(path, file.as_posix(), name(file).as_posix()) for path, file in inputs]

"""The images and videos that command-line arguments name."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

IMAGES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')


@dataclass(frozen=True)
class Input:
    """An input file."""

    path: Path  # absolute path
    file: str  # path relative to the common folder of all inputs, which identifies the input
    name: str  # name of its results: ``file``, without its suffix if that is unique

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
        files = (file for folder in _folders(path) for file in folder.iterdir())
        return path, [file for file in files if _is_input(file)]
    if path.is_file():
        return path.parent, [path]
    folder = path
    while glob.has_magic(str(folder)):
        folder = folder.parent
    parts = path.relative_to(folder).parts
    return folder, [file for file in _matches(folder, parts) if _is_input(file)]


def _folders(root: Path) -> Iterator[Path]:
    """Yield a folder and all folders in it, also linked ones, but none within itself."""
    for folder, names, _ in os.walk(root, followlinks=True):
        names[:] = [name for name in names if not _contains_itself(Path(folder, name))]
        yield Path(folder)


def _contains_itself(folder: Path) -> bool:
    return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.parents)


def _matches(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield what matches the parts of a pattern; ``glob`` would follow links in circles."""
    if not parts:
        yield folder
    elif parts[0] != '**':
        for name in glob.glob(parts[0], root_dir=folder):
            yield from _matches(folder / name, parts[1:])
    else:
        for inner in _folders(folder):
            if not any(name.startswith('.') for name in inner.relative_to(folder).parts):
                yield from _matches(inner, parts[1:] or ['*'])


def _is_input(path: Path) -> bool:
    return path.suffix.lower() in IMAGES + VIDEOS and path.is_file()


def _named(paths: Iterable[Path], root: Path) -> list[Input]:
    inputs = {path: path.relative_to(root) for path in paths}
    names = result_names(inputs.values())
    return [Input(path, file.as_posix(), names[file]) for path, file in inputs.items()]


def result_names(files: Iterable[Path]) -> dict[Path, str]:
    """Choose different names for the results of images and videos, relative to a common folder.

    An image has no suffix, unless another file would have the name too.
    """
    files = list(files)
    stems = Counter([*files, *(file.with_suffix('') for file in files)])

    def name(file: Path) -> Path:
        # Results of clip.mp4 must not collide with those of images in a folder clip.
        keeps_suffix = file.suffix.lower() in VIDEOS or stems[file.with_suffix('')] > 1
        return file if keeps_suffix else file.with_suffix('')

    return {file: name(file).as_posix() for file in files}

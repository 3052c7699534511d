"""The images and videos that a command line names."""

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
    """A file to predict on.

    Attributes:
        path: Where it is.
        file: Its path in the folder that all inputs have in common; two have never the same.
        name: Of what is made of it: ``file``, without its suffix where that is unique.
    """

    path: Path
    file: str
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        return self.path.suffix.lower() in VIDEOS


def find_inputs(arguments: Sequence[str]) -> tuple[Path, list[Input]]:
    """Find what is to be predicted on.

    Args:
        arguments: Files, folders with all that is in them, and patterns (``*``, ``?``, ``**``).

    Returns:
        The folder that all have in common, and the inputs, each once, by path.

    Raises:
        UserError: An argument names nothing.
    """
    folders, paths = [], set()
    for argument in arguments:
        folder, found = _look(argument)
        if not found:
            raise UserError(
                f'{argument}: there is no such image, video or pattern, or no image in the folder '
                f'({" ".join(IMAGES + VIDEOS)})'
            )
        folders.append(folder)
        paths.update(found)
    root = Path(os.path.commonpath(folders))
    return root, _named(sorted(paths), root)


def _look(argument: str) -> tuple[Path, list[Path]]:
    """The folder that an argument is about, and the files in it."""
    path = Path(os.path.abspath(argument))
    if path.is_dir():
        return path, [file for file in path.rglob('*') if _is_input(file)]
    if path.is_file():
        return path.parent, [path]
    fixed = path
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    found = map(Path, glob.glob(str(path), recursive=True)) if fixed != path else ()
    return fixed, [file for file in found if _is_input(file)]


def _is_input(path: Path) -> bool:
    return path.suffix.lower() in IMAGES + VIDEOS and path.is_file()


def _named(paths: Iterable[Path], root: Path) -> list[Input]:
    inputs = [(path, path.relative_to(root)) for path in paths]
    stems = Counter(file.with_suffix('') for _, file in inputs)

    def name(file: Path) -> Path:
        # The frames of clip.mp4 may also lie beside it, as images in a folder clip.
        keeps_suffix = file.suffix.lower() in VIDEOS or stems[file.with_suffix('')] > 1
        return file if keeps_suffix else file.with_suffix('')

    return [Input(path, file.as_posix(), name(file).as_posix()) for path, file in inputs]

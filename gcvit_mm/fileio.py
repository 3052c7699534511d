"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` for writing, which takes its place when it is complete.

    Args:
        path: The file to come; another of the name is replaced.
        durable: Wait until the disk has it: a crash of the machine at any moment then leaves the
            file that was there, or the new one. Without it that holds for a crash of the process.

    Raises:
        UserError: Writing failed; nothing is left then.
    """
    path = os.fspath(path)
    temporary = f'{path}.{os.getpid()}.tmp'
    try:
        # torch writes the name of a file into it, but knows none here: equal weights, equal bytes.
        with open(temporary, 'wb') as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(os.path.dirname(path) or '.')
    except (OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f'{path} cannot be written, is the disk full? ({reason})') from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def atomic_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8 and the folders that it needs.

    Raises:
        UserError: Writing failed; nothing is left then.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}') from error
    with atomic_write(path) as file:
        file.write(text.encode())


def _sync_folder(path: str) -> None:
    """Write a folder's list of files to the disk, without which a renamed file could be lost."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

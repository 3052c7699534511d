"""Atomic writing of files."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, which replaces ``path`` when it is complete.

    Args:
        path: The file to write; an existing one is replaced.
        durable: Flush the file to the disk, so that a crash of the machine leaves either the old or
            the new file. Otherwise only a crash of the process does.

    Raises:
        UserError: Writing failed; the temporary file is removed.
    """
    path = os.fspath(path)
    # Random, because processes of two containers or machines may have the same number.
    temporary = f'{path}.{secrets.randbelow(10**12)}.tmp'
    try:
        # PyTorch gets an open file and so no name to save in it: equal weights give equal files.
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
    """Write a text file in UTF-8, and create its folder if necessary."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}') from error
    with atomic_write(path) as file:
        file.write(text.encode(errors='backslashreplace'))  # names of files may be no text


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as JSON: {error}') from error


def _sync_folder(path: str) -> None:
    """Flush the entries of a folder to the disk, so that a crash cannot lose a renamed file."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

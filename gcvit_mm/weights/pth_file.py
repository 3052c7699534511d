"""Reading of ``.pth`` files, including those of PyTorch before 1.6, without executing code."""

import io
import os
import pickle
import sys
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO
from zipfile import ZipFile

import numpy as np
import torch

from .safe_pickle import (
    Name,
    RefusedError,
    SafeUnpickler,
    Storage,
    check_extent,
    is_size,
    require,
)

Device = str | torch.device | None


_SHARED = 16
"""How many times the size of a file its content may have, counting what is shared each time."""
_STORAGES = {
    'Double': torch.float64,
    'Float': torch.float32,
    'Half': torch.float16,
    'BFloat16': torch.bfloat16,
    'Long': torch.int64,
    'Int': torch.int32,
    'Short': torch.int16,
    'Char': torch.int8,
    'Byte': torch.uint8,
    'Bool': torch.bool,
    'ComplexDouble': torch.complex128,
    'ComplexFloat': torch.complex64,
}


def read_pth(path: str | os.PathLike, device: Device, lazy: bool = False) -> Any:
    """Read a ``.pth`` file: an archive, or a file of PyTorch before 1.6.

    The checksums of archives are verified.

    Args:
        path: The file.
        device: Device of the tensors; None uses the devices stored in the file.
        lazy: Do not read the tensors: they have shapes, but no values (device 'meta').

    Returns:
        The saved object.

    Raises:
        RefusedError: The file uses functions, types or calls that are not allowed.
        Exception: The file is damaged; the type depends on the damaged byte.
    """
    limit = os.path.getsize(path)
    with open(path, 'rb') as file:
        magic = file.read(4)
        file.seek(0)
        if magic == b'PK\x03\x04':
            with ZipFile(file) as archive:
                content = _read_archive(archive, limit, device, lazy)
        elif magic.startswith(b'\x80\x02'):
            content = _read_legacy(file, limit, device, lazy)
        elif not magic:
            raise EOFError('the file is empty')
        else:
            raise pickle.UnpicklingError('neither an archive nor a pickle')
    check_extent(content, _SHARED * limit)
    return content


def _read_archive(archive: ZipFile, limit: int, device: Device, lazy: bool) -> Any:
    records = {info.filename.partition('/')[2]: info for info in archive.infolist()}
    if any(info.compress_type for info in records.values()):
        raise RefusedError('it is compressed, unlike the files of PyTorch')
    if len(records) < len(archive.infolist()):
        raise RefusedError('it has two records of one name')
    if 'constants.pkl' in records:
        raise RefusedError('it is a TorchScript program')
    if 'byteorder' in records and archive.read(records['byteorder']) != sys.byteorder.encode():
        raise RefusedError('its byte order differs from that of this machine')

    def read(key: str, size: int) -> Iterable[bytes]:
        record = records[f'data/{key}']
        if record.file_size != size:
            raise ValueError(f'{record.filename} has {record.file_size} bytes, not {size}')
        with archive.open(record) as stream:
            while part := stream.read(2**24):
                yield part

    storages = _Storages(read, limit, 'meta' if lazy else device)
    return SafeUnpickler(io.BytesIO(archive.read(records['data.pkl'])), storages.get).load()


def _read_legacy(file: BinaryIO, limit: int, device: Device, lazy: bool) -> Any:
    """Read the format of PyTorch before 1.6, with the data after the pickle that refers to them."""
    if SafeUnpickler(file).load() != 0x1950A86A20F9469CFC6C:
        raise pickle.UnpicklingError('not written by PyTorch')
    for _ in range(2):  # version, and sizes of C types
        SafeUnpickler(file).load()
    start, outline = file.tell(), _Storages(None, limit, 'meta')
    content = SafeUnpickler(file, outline.get).load()
    if lazy:
        return content
    places = {}
    for key in SafeUnpickler(file).load():
        require(type(key) is str, 'storage')
        places[key] = file.tell() + 8
        file.seek(places[key] + outline.sizes[key])

    def read(key: str, size: int) -> Iterable[bytes]:
        here = file.tell()
        file.seek(places[key])
        yield file.read(size)
        file.seek(here)

    file.seek(start)
    return SafeUnpickler(file, _Storages(read, limit, device).get).load()


class _Storages:
    """The storages of tensors; each is read once.

    Args:
        read: Function that yields the bytes of a storage, given its key and size.
        limit: Maximum size of all storages together: the size of the file.
        device: Device of the storages; None uses the devices stored in the file.
    """

    def __init__(
        self, read: Callable[[str, int], Iterable[bytes]] | None, limit: int, device: Device
    ) -> None:
        self.read, self.limit, self.device = read, limit, device
        # Tensors may share storages, and be expanded.
        self.left = [_SHARED * limit + 2**23]
        self.sizes: dict[str, int] = {}
        self.total = 0
        self.storages: dict[str, torch.UntypedStorage] = {}

    def get(
        self, name: Any, kind: Any, key: Any, location: Any, count: Any, view: Any = None
    ) -> Storage:
        """The storage for a persistent id of a pickle."""
        require(name == 'storage' and view is None and type(kind) is Name, 'persistent id')
        require(type(key) is str and type(location) is str and is_size(count), 'storage')
        module, _, kind = kind.rpartition('.')
        require(module in ('torch', 'torch.cuda', 'torch.storage'), 'storage')
        dtype = _STORAGES.get(kind.removesuffix('Storage'))
        require(dtype is not None or kind == 'UntypedStorage', f'storage {kind}')
        size = count * (dtype.itemsize if dtype else 1)
        if key not in self.storages:
            self.total += size
            if self.total > self.limit:
                raise ValueError(f'storage {key} has {size} bytes, beyond the file')
            self.sizes[key] = size
            self.storages[key] = self._load(key, size, location)
        if self.sizes[key] != size:
            raise ValueError(f'storage {key} has two sizes')
        return Storage(self.storages[key], dtype, self.left)

    def _load(self, key: str, size: int, location: str) -> torch.UntypedStorage:
        device = torch.device(self.device or location)
        if self.read is None or device.type == 'meta':
            return torch.UntypedStorage(size, device='meta')
        data, filled = torch.empty(size, dtype=torch.uint8), 0
        for part in self.read(key, size):
            data.numpy()[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
        if filled != size:
            raise EOFError(f'storage {key} is cut off')
        return data.to(device).untyped_storage()

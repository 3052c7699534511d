"""Checkpoint files: reading that executes nothing, and writing."""

import json
import os
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ..choices import SUFFIXES
from ..errors import UserError
from ..fileio import atomic_write
from .names import shorten
from .pth_file import read_pth
from .safe_pickle import RefusedError

# --- Reading: nothing in a file is executed ---------------------------------------------------

_META = 'gcvit_mm'
_trusted = False


def trust_checkpoints() -> None:
    """From here on, read files that may execute code: the user says that they are to be trusted."""
    global _trusted
    _trusted = True


def read_checkpoint(
    path: str | os.PathLike,
    map_location: str | torch.device | None = 'cpu',
    lazy: bool = False,
) -> Any:
    """Read a ``.pth`` or ``.safetensors`` file without executing anything that it holds.

    Args:
        path: The file.
        map_location: Device of the tensors; None leaves them where a ``.pth`` file has them.
        lazy: Leave the tensors of a ``.pth`` file on the disk: they have shapes and no values.

    Returns:
        The file's content, as ``torch.load`` gives it; of a ``.safetensors`` file the tensors as
        ``state_dict``, beside the ``meta`` that ``write_checkpoint`` was given.

    Raises:
        UserError: The file is missing, damaged, or names what
            ``gcvit_mm.weights.safe_pickle`` does not read.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist: check the path')
    try:
        if path.endswith('.safetensors'):
            return _load_safetensors(path, str(map_location or 'cpu'))
        if _trusted:
            mmap = lazy and is_zipfile(path)
            return torch.load(path, map_location=map_location, weights_only=False, mmap=mmap)
        return read_pth(path, map_location, lazy)
    except RefusedError as error:
        raise UserError(
            f'checkpoint {path} is refused: {error}. For a file that you made yourself, there is '
            '--trust-checkpoint'
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f'checkpoint {path} is not a checkpoint, or it is damaged: fetch or save it again'
        ) from error
    # What a damaged file raises depends on the byte that is hit.
    except _DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f'checkpoint {path} cannot be read, it is truncated or damaged: fetch or save it again '
            f'({reason})'
        ) from error


_DAMAGE = (
    RuntimeError,  # RecursionError too
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    BadZipFile,
    SafetensorError,
)


def _load_safetensors(path: str, device: str) -> dict[str, dict]:
    with safe_open(path, 'pt') as file:
        meta = json.loads((file.metadata() or {}).get(_META, '{}'))
    return dict(meta=meta, state_dict=load_file(path, device))


def verify_checkpoint(path: str | os.PathLike) -> None:
    """Compare all of a ``.pth`` file with the checksums (CRC-32) that PyTorch writes into it.

    Raises:
        UserError: A byte differs, a part is missing, or the file is not such an archive.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except (BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise UserError(f'checkpoint {path} is truncated or damaged ({error})') from error
    if damaged:
        raise UserError(f'checkpoint {path} is damaged: the checksum of {damaged} does not match')


def weights_entry(content: Any, ema: bool = False) -> str | None:
    """The entry of a checkpoint that holds the weights; None where the file is nothing else.

    Args:
        content: What ``read_checkpoint`` gave.
        ema: The moving average of the weights is asked for.

    Raises:
        UserError: There is no average, and it is asked for.
    """
    entries = content if isinstance(content, Mapping) else {}
    if ema:
        entry = ema_entry(content)
        if not entry:
            listed = shorten([str(name) for name in entries])
            raise UserError(f'it holds no moving average (EMA): its entries are {listed}')
        return entry
    return next((n for n in ('state_dict', 'model') if isinstance(entries.get(n), Mapping)), None)


def ema_entry(content: Any) -> str | None:
    """The entry of a checkpoint that holds the moving average of the weights, if any does."""
    entries = content if isinstance(content, Mapping) else {}
    if 'ema_state_dict' in entries:
        return 'state_dict'  # mmengine's EMAHook puts the trained weights into the other one
    return next((n for n in ('state_dict_ema', 'model_ema') if entries.get(n)), None)


def state_dict_of(content: Any, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of ``state_dict`` or ``model`` where they are wrapped.

    Args:
        content: What ``read_checkpoint`` gave.
        ema: Take the moving average of the weights.

    Raises:
        UserError: There are none.
    """
    entry = weights_entry(content, ema)
    weights = content[entry] if entry else content
    tensors = (
        {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
        if isinstance(weights, Mapping)
        else {}
    )
    if not tensors:
        raise UserError('the checkpoint holds no tensors: is it a training state or log file?')
    return tensors


# --- Writing ----------------------------------------------------------------------------------


def check_target(path: str | os.PathLike, source: str | os.PathLike, force: bool) -> None:
    """Check that a checkpoint can be written, before the work for it.

    Args:
        path: The file to come.
        source: The file that it is made of, which is never overwritten.
        force: Another existing file may be overwritten.

    Raises:
        UserError: The file exists, its folder does not, or its suffix is none of ``SUFFIXES``.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or '.'
    if not path.endswith(SUFFIXES):
        raise UserError(f'{path}: the name must end in {", ".join(SUFFIXES)}')
    if not os.path.isdir(folder):
        raise UserError(f'{path}: folder {folder} does not exist: make it first')
    if os.path.exists(path) and not force:
        raise UserError(f'{path} exists: --force overwrites it')
    if os.path.isdir(path) or os.path.realpath(path) == os.path.realpath(source):
        raise UserError(f'{path} is a folder or the source itself: choose another name')


def write_checkpoint(
    path: str | os.PathLike, state: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None
) -> None:
    """Write a ``.pth`` or ``.safetensors`` file, whole or not at all.

    Args:
        path: The file; another of the name is replaced.
        state: Tensors by name.
        meta: Plain data about them. In a ``.pth`` file it stands beside ``state_dict``, and the
            file is the bare state dict without it; in a ``.safetensors`` file it is JSON.

    Raises:
        UserError: The file cannot be written.
    """
    path = os.fspath(path)
    # Views would bring the whole of what they are views of, and safetensors takes none.
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    with atomic_write(path) as file:
        if path.endswith('.safetensors'):
            _dump_safetensors(state, meta, file)
        else:
            torch.save(dict(meta=dict(meta), state_dict=state) if meta else state, file)


def _dump_safetensors(
    state: Mapping[str, Tensor], meta: Mapping[str, Any] | None, file: BinaryIO
) -> None:
    content = memoryview(save(dict(state)))
    size = int.from_bytes(content[:8], 'little')
    # By itself, safetensors orders metadata at random: equal weights would have unequal hashes.
    metadata = {'format': 'pt', **({_META: json.dumps(meta)} if meta else {})}
    header = json.dumps({'__metadata__': metadata, **json.loads(bytes(content[8 : 8 + size]))})
    header += ' ' * (-len(header) % 8)  # tensors begin aligned
    file.write(len(header).to_bytes(8, 'little') + header.encode())
    file.write(content[8 + size :])

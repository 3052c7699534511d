"""Reading of checkpoint files without executing code, and writing of them."""

import json
import os
import pickle
import re
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

# --- Reading ----------------------------------------------------------------------------------

_META = 'gcvit_mm'
_trusted = False


def trust_checkpoints() -> None:
    """Allow checkpoint files to execute code, in all later reads of this process."""
    global _trusted
    _trusted = True


def read_checkpoint(
    path: str | os.PathLike,
    map_location: str | torch.device | None = 'cpu',
    lazy: bool = False,
) -> Any:
    """Read a ``.pth`` or ``.safetensors`` file without executing code from it.

    Args:
        path: The checkpoint file.
        map_location: Device of the tensors; None uses the devices stored in a ``.pth`` file.
        lazy: Do not read the tensors of a ``.pth`` file: they have shapes, but no values.

    Returns:
        The content as ``torch.load`` returns it. For a ``.safetensors`` file, a dict with the
        tensors as ``state_dict``, and the ``meta`` that was given to ``write_checkpoint``.

    Raises:
        UserError: The file is missing or damaged, or refers to functions or types that
            ``gcvit_mm.weights.safe_pickle`` does not allow.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist: check the path')
    try:
        if path.endswith('.safetensors'):
            return _load_safetensors(path, str(map_location or 'cpu'))
        if _trusted:
            if not lazy and is_zipfile(path):
                verify_checkpoint(path)  # PyTorch's reader does not
            mmap = lazy and is_zipfile(path)
            return torch.load(path, map_location=map_location, weights_only=False, mmap=mmap)
        return read_pth(path, map_location, lazy)
    except UserError:
        raise
    except RefusedError as error:
        raise UserError(
            f'checkpoint {path} is refused: {error}. If you made the file yourself, pass '
            '--trust-checkpoint'
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f'{path} is not a checkpoint, or it is damaged: download or save it again'
        ) from error
    # The type of the error depends on which byte of the file is damaged.
    except _DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f'checkpoint {path} cannot be read, it is truncated or damaged: download or save it '
            f'again ({reason})'
        ) from error


_DAMAGE = (
    RuntimeError,  # includes RecursionError
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
    """Verify the checksums (CRC-32) that PyTorch writes into a ``.pth`` file.

    Raises:
        UserError: The file is damaged or truncated, or is not an archive of PyTorch.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except (BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise UserError(f'checkpoint {path} is truncated or damaged ({error})') from error
    if damaged:
        raise UserError(f'checkpoint {path} is damaged: the checksum of {damaged} does not match')


def meta_of(content: Any) -> dict[str, Any]:
    """The metadata of a checkpoint; empty if it has none.

    Raises:
        UserError: They are of other types than a run writes.
    """
    meta = content.get('meta') if isinstance(content, Mapping) else None
    meta = {} if meta is None else meta
    data = meta.get('dataset_meta') or {} if isinstance(meta, dict) else None
    classes = data.get('classes') or () if isinstance(data, dict) else None
    if (
        not isinstance(classes, str | list | tuple)
        or not all(isinstance(name, str) for name in classes)
        or not isinstance(meta.get('cfg') or '', str)
    ):
        raise UserError(
            'meta.cfg is no text, or meta.dataset_meta.classes no list of names: correct them, or '
            'remove meta from the file'
        )
    return meta


def weights_entry(content: Any, ema: bool = False) -> str | None:
    """The key of the weights in a checkpoint; None if it is a bare state dict, or has several.

    Args:
        content: The result of ``read_checkpoint``.
        ema: Return the key of the moving average of the weights.

    Raises:
        UserError: ``ema`` is True, but the checkpoint has no moving average.
    """
    if ema:
        entry = ema_entry(content)
        if not entry:
            raise UserError(f'the file has no moving average (EMA), {_entries_of(content)}')
        return entry
    candidates = _candidates(content)
    trained = [name for name in candidates if not _EMA.search(name)] or candidates
    if len(trained) == 1:
        return trained[0]
    return next((name for name in ('state_dict', 'model') if name in trained), None)


def ema_entry(content: Any) -> str | None:
    """The key of the moving average of the weights in a checkpoint; None without an average."""
    candidates = _candidates(content)
    if 'ema_state_dict' in candidates:
        return 'state_dict'  # mmengine's EMAHook saves the trained weights as ema_state_dict
    return next(filter(_EMA.search, candidates), None)


_EMA = re.compile(r'(^|_)ema(_|$)')


def _candidates(content: Any) -> list[str]:
    """The keys of state dicts in a checkpoint."""
    entries = content if isinstance(content, Mapping) else {}
    bare = any(isinstance(value, Tensor) for value in entries.values())
    return [
        str(name)
        for name, value in entries.items()
        if isinstance(value, Mapping) and any(isinstance(x, Tensor) for x in value.values())
        if not bare or name in ('state_dict', 'model')
    ]


def _entries_of(content: Any) -> str:
    names = [str(name) for name in content] if isinstance(content, Mapping) else []
    return f'only the entries {shorten(names)}' if names else f'it is a {type(content).__name__}'


def state_dict_of(content: Any, ema: bool = False) -> dict[str, Tensor]:
    """The weights of a checkpoint, from its entry of weights if it has one.

    Args:
        content: The result of ``read_checkpoint``.
        ema: Return the moving average of the weights.

    Returns:
        Tensors by name. If the checkpoint has several entries of weights, such as 'student' and
        'teacher', names begin with that of the entry.

    Raises:
        UserError: The checkpoint has no tensors, or no moving average.
    """
    entry = weights_entry(content, ema)
    weights = content[entry] if entry else content
    items = list(weights.items()) if isinstance(weights, Mapping) else []
    for name in () if entry else _candidates(content):
        items += [(f'{name}.{key}', value) for key, value in content[name].items()]
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if isinstance(content, Mapping) and content.get('state_dict_encrypted'):
        raise UserError(
            "the file is encrypted by NVIDIA's TAO: get one that is not encrypted, or save it "
            'again in TAO without a key'
        )
    if not tensors:
        raise UserError(
            f'the file has no tensors, {_entries_of(content)}: check that it is a checkpoint with '
            'weights'
        )
    return tensors


# --- Writing ----------------------------------------------------------------------------------


def check_target(path: str | os.PathLike, source: str | os.PathLike, force: bool) -> None:
    """Check that a checkpoint can be written, before it is computed.

    Args:
        path: The file to write.
        source: The source file, which is never overwritten.
        force: Allow overwriting an existing file.

    Raises:
        UserError: The file exists, its folder does not, or its suffix is not in ``SUFFIXES``.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or '.'
    if not path.endswith(SUFFIXES):
        raise UserError(f'{path}: the name must end in {", ".join(SUFFIXES)}')
    if not os.path.isdir(folder):
        raise UserError(f'{path}: folder {folder} does not exist: create it first')
    if os.path.exists(path) and not force:
        raise UserError(f'{path} exists: pass --force to overwrite it')
    if os.path.isdir(path) or os.path.realpath(path) == os.path.realpath(source):
        raise UserError(f'{path} is a folder or the source itself: choose another name')


def write_checkpoint(
    path: str | os.PathLike, state: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None
) -> None:
    """Write a ``.pth`` or ``.safetensors`` file atomically.

    Args:
        path: The file; an existing one is replaced.
        state: Tensors by name.
        meta: Metadata that JSON can represent. A ``.pth`` file has the keys ``meta`` and
            ``state_dict``, or is a bare state dict without metadata.

    Raises:
        UserError: The file cannot be written.
    """
    path = os.fspath(path)
    # A view would save its whole storage, and safetensors refuses views.
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
    # safetensors writes metadata in random order, so equal files would have different hashes.
    metadata = {'format': 'pt', **({_META: json.dumps(meta)} if meta else {})}
    header = json.dumps({'__metadata__': metadata, **json.loads(bytes(content[8 : 8 + size]))})
    header += ' ' * (-len(header) % 8)  # aligns the tensors
    file.write(len(header).to_bytes(8, 'little') + header.encode())
    file.write(content[8 + size :])

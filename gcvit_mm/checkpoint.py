"""Checkpoints of GC ViT: safe reading, conversion of names, and a report on every tensor."""

import argparse
import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer, print_log
from mmengine.utils import digit_version
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch._weights_only_unpickler import _get_allowed_globals

from .errors import UserError
from .models.gcvit import ARCHS, GCViT

# --- Reading: nothing in a file is executed ---------------------------------------------------


def _history_method(cls: type, name: str) -> Any:
    """What ``getattr`` may do in a checkpoint: name a statistic of mmengine's ``HistoryBuffer``."""
    if cls is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({cls!r}, {name!r}) is not allowed')
    return getattr(HistoryBuffer, name)


def _bytes(text: str, encoding: str) -> bytes:
    """How numpy's pickles spell bytes."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'encoding {encoding!r} is not allowed')
    return text.encode('latin1')


_multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
_DTYPES = ('bool', 'uint8', 'int32', 'int64', 'float16', 'float32', 'float64')
SAFE_GLOBALS: dict[str, Any] = {
    'argparse.Namespace': argparse.Namespace,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'builtins.getattr': _history_method,
    '__builtin__.getattr': _history_method,
    '_codecs.encode': _bytes,
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    # numpy 2 renamed numpy.core, and files hold either name.
    **{
        f'numpy.{core}.multiarray.{name}': getattr(_multiarray, name)
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    },
    **{f'numpy.dtypes.{type(np.dtype(name)).__name__}': type(np.dtype(name)) for name in _DTYPES},
}
"""What a checkpoint may name besides tensors: the settings of timm's trainer, mmengine's logs."""


def read_checkpoint(
    path: str | os.PathLike, map_location: str | torch.device | None = 'cpu'
) -> Any:
    """Read a ``.pth`` or ``.safetensors`` file without executing anything that it holds.

    Args:
        path: The file.
        map_location: Device of the tensors; None leaves them where a ``.pth`` file has them.

    Returns:
        The file's content, as ``torch.load`` gives it.

    Raises:
        UserError: The file is missing, damaged, or holds more than tensors and ``SAFE_GLOBALS``.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist: check the path')
    try:
        if path.endswith('.safetensors'):
            return load_file(path, device=str(map_location or 'cpu'))
        return _load_pickle(path, map_location)
    except pickle.UnpicklingError as error:
        refused = re.search(r'GLOBAL ([\w.]+)', str(error))
        raise UserError(
            f'checkpoint {path} is refused: it names {refused.group(1)}, which could run code'
            if refused
            else f'checkpoint {path} is not a checkpoint, or it is damaged: fetch or save it again'
        ) from error
    # What a damaged file raises depends on the byte that is hit.
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f'checkpoint {path} cannot be read, it is truncated or damaged: fetch or save it again '
            f'({reason})'
        ) from error


def _load_pickle(path: str, map_location: str | torch.device | None) -> Any:
    if digit_version(torch.__version__) >= digit_version('2.6'):
        with torch.serialization.safe_globals([(f, name) for name, f in SAFE_GLOBALS.items()]):
            return torch.load(path, map_location=map_location, weights_only=True)
    # Older releases cannot be told of more types by name: there, the same list restricts an
    # ordinary unpickler.
    return torch.load(
        path, map_location=map_location, weights_only=False, pickle_module=_RestrictedPickle
    )


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {**_get_allowed_globals(), **SAFE_GLOBALS}
        path = f'{module}.{name}'
        if path not in allowed:
            raise pickle.UnpicklingError(f'GLOBAL {path} is not allowed')
        return allowed[path]


class _RestrictedPickle:
    """The part of the ``pickle`` module that ``torch.load`` asks for."""

    Unpickler = _RestrictedUnpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _RestrictedUnpickler(file, **options).load()


def state_dict_of(content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of ``state_dict`` or ``model`` where they are wrapped.

    Raises:
        UserError: There are none.
    """
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise UserError('the checkpoint holds no tensors: is it a training state or log file?')
    return tensors


# --- Names ------------------------------------------------------------------------------------

_MBCONV = [
    (r'\bconv\.0\.', 'conv_dw.'),
    (r'\bconv\.2\.fc\.0\.', 'se.fc1.'),
    (r'\bconv\.2\.fc\.2\.', 'se.fc2.'),
    (r'\bconv\.3\.', 'conv_pw.'),
]
_RENAMES: dict[str, list[tuple[str, Any]]] = {
    'official': [
        (r'^patch_embed\.proj\.', 'stem.conv.'),
        (r'^patch_embed\.conv_down\.(?=conv\.)', 'stem.down.conv.'),
        (r'^patch_embed\.conv_down\.', 'stem.down.'),
        (r'^levels\.', 'stages.'),
        (r'\.downsample\.(?=conv\.)', '.downsample.conv.'),
        (r'\.q_global_gen\.to_q_global\.', '.global_query.convs.'),
        *_MBCONV,
        (r'^norm\.', 'norm3.'),
    ],
    'timm': [
        (r'^stem\.conv1\.', 'stem.conv.'),
        (r'\.conv_block\.', '.conv.'),
        (r'^stages\.([1-3])\.downsample\.', lambda m: f'stages.{int(m[1]) - 1}.downsample.'),
        (
            r'\.global_block\.blocks\.conv(\d)\.',
            lambda m: f'.global_query.convs.{int(m[1]) - 1}.',
        ),
        (r'\.rel_pos\.', '.'),
        (r'\.ls([12])\.gamma$', r'.gamma\1'),
        (r'^stages\.3\.norm\.', 'norm3.'),
        (r'^head\.fc\.', 'head.'),
    ],
    'gcvit_mm': [],
}
"""Per naming, what turns its names into ours, applied in order."""

_MARKERS = {
    'official': 'patch_embed.conv_down.conv.0.weight',
    'timm': 'stem.down.conv_block.conv_dw.weight',
    'gcvit_mm': 'stem.down.conv.conv_dw.weight',
}
"""A tensor that only this naming has."""


def convert_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Turn official or timm's names into ours; what wraps the backbone (``module.``) is dropped.

    Args:
        state: Tensors by name.

    Returns:
        Tensors by our names, and the naming they came in: 'official', 'timm' or 'gcvit_mm'.
        Classifier tensors come out as ``head.weight`` and ``head.bias``, index buffers not at all.

    Raises:
        UserError: These are not GC ViT's tensors.
    """
    naming, prefix = _naming(state)
    converted = {}
    for name, tensor in state.items():
        if not name.startswith(prefix) or name.endswith('relative_position_index'):
            continue
        name = name[len(prefix) :]
        for pattern, replacement in _RENAMES[naming]:
            name = re.sub(pattern, replacement, name)
        if '.se.fc' in name:
            tensor = tensor.flatten(1)  # timm's are 1x1 convolutions
        converted[name] = tensor
    return converted, naming


def _naming(state: Mapping[str, Tensor]) -> tuple[str, str]:
    for naming, marker in _MARKERS.items():
        for name in state:
            if name.endswith(marker):
                return naming, name[: -len(marker)]
    raise UserError(
        f'it is not of a GC ViT: its tensors are named {", ".join(list(state)[:3])}, ...'
    )


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Resize a relative-position-bias table to another window, bicubically.

    Args:
        table: Shape ((2 s - 1)^2, heads) for the source window s.
        window: The window to come.

    Returns:
        Table of shape ((2 * window - 1)^2, heads).
    """
    side = math.isqrt(len(table))
    target = 2 * window - 1
    grid = table.float().T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, (target, target), mode='bicubic', align_corners=False)
    return grid.flatten(2)[0].T.to(table.dtype)


# --- Loading ----------------------------------------------------------------------------------


@dataclass
class LoadReport:
    """What became of every tensor of a model and of the file it was loaded from."""

    source: str
    naming: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f'{self.source} ({self.naming} naming): {len(self.loaded)} tensors loaded, '
            f'{len(self.resized)} bias tables resized, '
            f'{len(self.new)} newly initialised{_some(self.new)}, '
            f'{len(self.left_over)} left over{_some(self.left_over)}'
        )


def _some(names: Sequence[str], most: int = 8) -> str:
    if not names:
        return ''
    return f' ({", ".join(names[:most])}{", ..." if len(names) > most else ""})'


def load_pretrained(
    model: GCViT,
    checkpoint: str,
    *,
    prefix: str | None = None,
    map_location: str = 'cpu',
    allow_missing: Sequence[str] = (),
) -> LoadReport:
    """Load official, timm's or our weights into a backbone, whatever its windows.

    Everything is checked before the first tensor is written.

    Args:
        model: The backbone.
        checkpoint: A ``.pth``, ``.pth.tar`` or ``.safetensors`` file.
        prefix: Where the backbone stands in the file, 'backbone.' for example; found by itself
            where it stands there once.
        map_location: Device to read to.
        allow_missing: Beginnings of the names of tensors that may be missing or of another shape,
            'stages.3.' for example; those stay as initialised.

    Returns:
        The report, which is logged as well.

    Raises:
        UserError: The file is missing, damaged, of another variant, or has less than 90 % of what
            is not in ``allow_missing``.
    """
    try:
        state = state_dict_of(read_checkpoint(checkpoint, map_location))
        if prefix is not None:
            state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        state, naming = convert_names(state)
        tensors, report = _match(model, state, tuple(allow_missing))
    except UserError as error:
        message = str(error)
        raise UserError(
            message if checkpoint in message else f'checkpoint {checkpoint}: {message}'
        ) from error
    report.source, report.naming = checkpoint, naming
    model.load_state_dict(tensors, strict=False)
    print_log(f'GCViT weights from {report}', logger='current')
    return report


def _match(
    model: GCViT, state: dict[str, Tensor], allow_missing: tuple[str, ...]
) -> tuple[dict[str, Tensor], LoadReport]:
    target = model.state_dict()
    report = LoadReport('', '')
    report.left_over = [name for name in state if name not in target]
    # Heads, output norms and later stages may be left over; blocks of a built stage may not.
    built = tuple(f'stages.{i}.blocks.' for i in range(len(model.stages)))
    wrong = [name for name in report.left_over if name.startswith(built)]
    tensors = {}
    for name, own in target.items():
        tensor = state.get(name)
        if tensor is None:
            report.new.append(name)
        elif tensor.shape == own.shape:
            tensors[name] = tensor
            report.loaded.append(name)
        elif name.endswith('relative_position_bias_table') and tensor.shape[1] == own.shape[1]:
            tensors[name] = resize_bias_table(tensor, (math.isqrt(len(own)) + 1) // 2)
            report.resized.append(name)
        elif name.startswith(allow_missing):
            report.new.append(name)
        else:
            wrong.append(name)
    required = [name for name in target if not (allow_missing and name.startswith(allow_missing))]
    share = sum(target[n].numel() for n in required if n in tensors) / sum(
        target[n].numel() for n in required
    )
    if wrong or share < 0.9:
        raise UserError(
            f'it holds {describe(state)}, the model is {describe(target)}: '
            f'{share:.0%} of the model would be loaded'
            + (f', {len(wrong)} tensors do not fit{_some(wrong, 3)}' if wrong else '')
            + '. Use the checkpoint of the same arch, or name what may be missing in '
            'init_cfg.allow_missing'
        )
    return tensors, report


def describe(state: Mapping[str, Tensor]) -> str:
    """Name the variant that a state dict in our naming belongs to, by its sizes."""
    dim = len(state['stem.conv.weight'])
    depths = tuple(
        len({name.split('.')[3] for name in state if name.startswith(f'stages.{i}.blocks.')})
        for i in range(4)
    )
    hidden = state.get('stages.0.blocks.0.mlp.fc1.weight')
    ratio = len(hidden) / dim if hidden is not None else 0
    for arch, settings in ARCHS.items():
        if (dim, depths, ratio) == tuple(settings[k] for k in ('dim', 'depths', 'mlp_ratio')):
            return f'GC ViT {arch}'
    return f'a GC ViT of dim {dim}, depths {depths}'

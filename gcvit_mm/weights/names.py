"""The names of GC ViT's tensors: the official ones, timm's and ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import UserError
from ..models.archs import ARCHS

_MBCONV = [
    (r'\bconv\.0\.', 'conv_dw.'),
    (r'\bconv\.2\.fc\.0\.', 'se.fc1.'),
    (r'\bconv\.2\.fc\.2\.', 'se.fc2.'),
    (r'\bconv\.3\.', 'conv_pw.'),
]
_Renames = list[tuple[str, str | Callable[[re.Match], str]]]
_TO_OURS: dict[str, _Renames] = {
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

TO_TIMM: _Renames = [
    (r'^stem\.conv\.', 'stem.conv1.'),
    (r'\.conv\.(?=conv_|se\.)', '.conv_block.'),
    (r'^stages\.([0-2])\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.downsample.'),
    (
        r'\.global_query\.convs\.(\d)\.',
        lambda m: f'.global_block.blocks.conv{int(m[1]) + 1}.',
    ),
    (r'\.attn\.(?=relative_position_bias_table$)', '.attn.rel_pos.'),
    (r'\.gamma([12])$', r'.ls\1.gamma'),
    (r'^norm3\.', 'stages.3.norm.'),
    (r'^head\.', 'head.fc.'),
]

_MARKERS = {
    'official': 'patch_embed.conv_down.conv.0.weight',
    'timm': 'stem.down.conv_block.conv_dw.weight',
    'gcvit_mm': 'stem.down.conv.conv_dw.weight',
}
"""A tensor that only this naming has."""


def rename(name: str, renames: _Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


# --- What a file holds ------------------------------------------------------------------------


@dataclass
class Contents:
    """The tensors of a file, by what they are.

    Attributes:
        naming: 'official', 'timm' or 'gcvit_mm'.
        prefix: What stands before the backbone's names, 'module.backbone.' for example.
        backbone: The backbone's tensors, by our names.
        head: A classifier's tensors, ``weight`` and ``bias``.
        others: The tensors of other modules, by their own names.
        index: Names of index buffers, which our backbone computes for its windows.
    """

    naming: str
    prefix: str
    backbone: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    index: list[str] = field(default_factory=list)


def sort_tensors(state: Mapping[str, Tensor]) -> Contents:
    """Tell the backbone's tensors from all others, and name them as we do.

    Args:
        state: Tensors by name, of a backbone alone or of a model that has one.

    Raises:
        UserError: These are not the tensors of one GC ViT.
    """
    contents = Contents(*_find_backbone(state))
    fc = contents.prefix.removesuffix('backbone.') + 'head.fc.'  # a classifier of mmpretrain
    for name, tensor in state.items():
        if name.startswith(contents.prefix):
            _put(contents, name, tensor)
        elif name.startswith(fc):
            contents.head[name[len(fc) :]] = tensor
        else:
            contents.others[name] = tensor
    return contents


def _find_backbone(state: Mapping[str, Tensor]) -> tuple[str, str]:
    found = [
        (naming, name.removesuffix(marker))
        for naming, marker in _MARKERS.items()
        for name in state
        if name.endswith(marker)
    ]
    if not found:
        raise UserError(f'it is not of a GC ViT: its tensors are named {shorten(list(state), 3)}')
    if len(found) > 1:
        places = ' and '.join(repr(prefix) for _, prefix in found)
        raise UserError(f'it holds more than one backbone, at {places}: init_cfg.prefix names one')
    return found[0]


def _put(contents: Contents, source: str, tensor: Tensor) -> None:
    if source.endswith('relative_position_index'):
        contents.index.append(source)
        return
    name = rename(source[len(contents.prefix) :], _TO_OURS[contents.naming])
    if '.se.fc' in name:
        tensor = tensor.flatten(1)  # timm's are 1x1 convolutions
    part = contents.head if name.startswith('head.') else contents.backbone
    name = name.removeprefix('head.')
    if name in part:
        raise UserError(f'it holds two tensors for {name}, one of them {source}')
    part[name] = tensor


def convert_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Turn official or timm's names into ours; what wraps the backbone (``module.``) is dropped.

    Args:
        state: Tensors by name.

    Returns:
        Tensors by our names, and the naming they came in: 'official', 'timm' or 'gcvit_mm'.
        Classifier tensors come out as ``head.weight`` and ``head.bias``, those of other modules as
        they are, index buffers not at all.

    Raises:
        UserError: These are not the tensors of one GC ViT.
    """
    contents = sort_tensors(state)
    head = {f'head.{name}': tensor for name, tensor in contents.head.items()}
    return {**contents.backbone, **head, **contents.others}, contents.naming


def describe(state: Mapping[str, Tensor]) -> str:
    """Name the variant that a state dict in our naming belongs to, by its sizes."""
    dim, depths, ratio = sizes_of(state)
    for arch, settings in ARCHS.items():
        if (dim, depths, ratio) == tuple(settings[k] for k in ('dim', 'depths', 'mlp_ratio')):
            return f'GC ViT {arch}'
    return f'a GC ViT of dim {dim}, depths {depths}'


def sizes_of(state: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...], float]:
    dim = len(state[_MARKERS['gcvit_mm']])
    depths = tuple(
        len({name.split('.')[3] for name in state if name.startswith(f'stages.{i}.blocks.')})
        for i in range(4)
    )
    hidden = state.get('stages.0.blocks.0.mlp.fc1.weight')
    return dim, depths, len(hidden) / dim if hidden is not None else 1


def shorten(names: Sequence[str], most: int = 8) -> str:
    """Some names, and dots for the rest."""
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')

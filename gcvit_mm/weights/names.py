"""Names of the tensors of GC ViT: the official naming, timm's and ours."""

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
Renames = list[tuple[str, str | Callable[[re.Match], str]]]
_TO_OURS: dict[str, Renames] = {
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
        (r'\.global_block\.blocks\.conv(\d)\.', lambda m: f'.global_query.convs.{int(m[1]) - 1}.'),
        (r'\.rel_pos\.', '.'),
        (r'\.ls([12])\.gamma$', r'.gamma\1'),
        (r'^stages\.3\.norm\.', 'norm3.'),
        (r'^head\.fc\.', 'head.'),
    ],
    'gcvit_mm': [],
}
"""Replacements that convert the names of each naming to ours, applied in order."""

TO_TIMM: Renames = [
    (r'^stem\.conv\.', 'stem.conv1.'),
    (r'\.conv\.(?=conv_|se\.)', '.conv_block.'),
    (r'^stages\.([0-2])\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.downsample.'),
    (r'\.global_query\.convs\.(\d)\.', lambda m: f'.global_block.blocks.conv{int(m[1]) + 1}.'),
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


def rename(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


# --- Contents of a file -----------------------------------------------------------------------


@dataclass
class Contents:
    """The tensors of a file, sorted by their module."""

    naming: str  # 'official', 'timm' or 'gcvit_mm'
    prefix: str  # prefix of the names of the backbone, such as 'module.backbone.'
    # Tensors of the backbone, by our names.
    backbone: dict[str, Tensor] = field(default_factory=dict)
    # Tensors of a classifier, ``weight`` and ``bias``.
    head: dict[str, Tensor] = field(default_factory=dict)
    # Tensors of other modules, by their original names.
    others: dict[str, Tensor] = field(default_factory=dict)
    # Names of index buffers, which our backbone computes for its windows.
    index: list[str] = field(default_factory=list)


def sort_tensors(state: Mapping[str, Tensor], prefix: str | None = None) -> Contents:
    """Sort tensors by module, and convert the names of the backbone to ours.

    With a prefix, only the tensors whose names begin with it are used, without it.
    """
    if prefix is not None:
        places = {place for _, place in _backbones(state)}
        others = tuple(places - {prefix}) if prefix == '' in places else ()
        own = (name for name in state if name.startswith(prefix) and not name.startswith(others))
        state = {name[len(prefix) :]: state[name] for name in own}
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


def _backbones(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The naming and the prefix of each backbone."""
    return [
        (naming, name.removesuffix(marker))
        for naming, marker in _MARKERS.items()
        for name in state
        if name.endswith(marker)
    ]


def _find_backbone(state: Mapping[str, Tensor]) -> tuple[str, str]:
    backbones = _backbones(state)
    if not backbones:
        raise UserError(f'the file has no GC ViT, but tensors {shorten(list(state), 3)}')
    if len(backbones) > 1:
        prefixes = ' and '.join(repr(prefix) for _, prefix in backbones)
        raise UserError(
            f'the file has more than one backbone, at {prefixes}: choose one by init_cfg.prefix or '
            'by --prefix of tools/convert_checkpoint.py'
        )
    return backbones[0]


def _put(contents: Contents, source: str, tensor: Tensor) -> None:
    if source.endswith('relative_position_index'):
        contents.index.append(source)
        return
    name = rename(source[len(contents.prefix) :], _TO_OURS[contents.naming])
    if '.se.fc' in name:
        tensor = tensor.flatten(1)  # timm has 1x1 convolutions here
    part = contents.head if name.startswith('head.') else contents.backbone
    name = name.removeprefix('head.')
    if name in part:
        raise UserError(f'the file has two tensors for {name}, one of them {source}')
    part[name] = tensor


def convert_names(
    state: Mapping[str, Tensor], prefix: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """Convert official or timm's names to ours, and return the naming too.

    With a prefix, only the tensors whose names begin with it are used, without it. The prefix of
    the backbone is removed. Classifiers become ``head.weight`` and ``head.bias``, other modules
    keep their names, and index buffers are dropped.
    """
    contents = sort_tensors(state, prefix)
    head = {f'head.{name}': tensor for name, tensor in contents.head.items()}
    return {**contents.backbone, **head, **contents.others}, contents.naming


def describe(state: Mapping[str, Tensor]) -> str:
    """The variant of a state dict in our naming, recognised by its sizes."""
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


def shorten(names: Sequence[object], most: int = 8) -> str:
    """Join the first ``most`` names, with dots for the rest."""
    return ', '.join(map(str, names[:most])) + (', ...' if len(names) > most else '')

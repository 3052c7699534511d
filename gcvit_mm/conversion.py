"""Names of GC ViT's tensors: the official ones, timm's and ours, and the way between them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import UserError
from .models.gcvit import ARCHS, GCViT

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

_TO_TIMM: _Renames = [
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


def _rename(name: str, renames: _Renames) -> str:
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
    name = _rename(source[len(contents.prefix) :], _TO_OURS[contents.naming])
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
    dim, depths, ratio = _sizes(state)
    for arch, settings in ARCHS.items():
        if (dim, depths, ratio) == tuple(settings[k] for k in ('dim', 'depths', 'mlp_ratio')):
            return f'GC ViT {arch}'
    return f'a GC ViT of dim {dim}, depths {depths}'


def _sizes(state: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...], float]:
    dim = len(state[_MARKERS['gcvit_mm']])
    depths = tuple(
        len({name.split('.')[3] for name in state if name.startswith(f'stages.{i}.blocks.')})
        for i in range(4)
    )
    hidden = state.get('stages.0.blocks.0.mlp.fc1.weight')
    return dim, depths, len(hidden) / dim if hidden is not None else 1


# --- Conversion of a whole file ---------------------------------------------------------------


@dataclass
class Conversion:
    """A state dict for a task, and what became of every tensor of its source.

    Attributes:
        naming: The source's naming.
        variant: For example 'GC ViT tiny'.
        windows: Side of the windows of each stage, in cells.
        classes: Number of classes; 0 without a classifier.
        tensors: What was asked for.
        left_out: Names of the source's other tensors, by what they are.
    """

    naming: str
    variant: str
    windows: tuple[int, ...]
    classes: int
    tensors: dict[str, Tensor]
    left_out: dict[str, list[str]]


def convert(state: Mapping[str, Tensor], task: str, to: str = 'gcvit_mm') -> Conversion:
    """Convert a state dict; every tensor is taken, or left out in a group that has a name.

    Args:
        state: Tensors by name: official, timm's or ours.
        task: 'classification' gives the state of a classifier, in our naming of mmpretrain's
            ``ImageClassifier`` with a ``LinearClsHead``; 'dense' that of a bare backbone.
        to: 'gcvit_mm' or 'timm'.

    Raises:
        UserError: Something is missing, or is not of a GC ViT.
    """
    contents = sort_tensors(state)
    left_out = _other_modules(contents)
    if contents.index:
        left_out['index buffers, computed from the windows'] = contents.index
    backbone, head = contents.backbone, contents.head
    if task == 'classification':
        _check_classifier(contents)
    elif head:
        left_out['classifier'] = [f'head.{name}' for name in head]
        head = {}
    whole = task == 'classification' or to == 'timm'
    early = [name for name in backbone if whole and re.match(r'norm[0-2]\.', name)]
    if early:
        left_out['output norms of the first stages'] = early
        backbone = {name: tensor for name, tensor in backbone.items() if name not in early}
    return Conversion(
        naming=contents.naming,
        variant=describe(backbone),
        windows=_check_backbone(backbone, whole),
        classes=len(head['weight']) if head else 0,
        tensors=_timm_state(backbone, head) if to == 'timm' else _our_state(backbone, head),
        left_out=left_out,
    )


def _other_modules(contents: Contents) -> dict[str, list[str]]:
    """The tensors of the modules beside the backbone, by module."""
    if contents.others and not contents.prefix.endswith('backbone.'):
        listed = shorten(list(contents.others))
        raise UserError(f'it holds tensors that are not understood: {listed}')
    root = contents.prefix.removesuffix('backbone.')
    modules: dict[str, list[str]] = {}
    for name in contents.others:
        modules.setdefault(name.removeprefix(root).split('.')[0], []).append(name)
    return modules


def _check_classifier(contents: Contents) -> None:
    if set(contents.head) != {'weight', 'bias'}:
        raise UserError(
            'it holds no classifier with a linear head (weight and bias): only its backbone can be '
            'converted, by the task dense'
        )
    if contents.others:
        listed = shorten(list(contents.others))
        raise UserError(f'it holds tensors that a classifier does not have: {listed}')


def _check_backbone(state: Mapping[str, Tensor], whole: bool) -> tuple[int, ...]:
    """Compare with a backbone of the same sizes, tensor by tensor; give its windows."""
    expected, windows = _expected(state, whole)
    problems = {
        'missing': [name for name in expected if name not in state],
        'not understood': [name for name in state if name not in expected],
        'of another shape': [
            name for name in expected if name in state and state[name].shape != expected[name]
        ],
    }
    found = [
        f'{len(names)} tensors are {problem} ({shorten(names, 3)})'
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise UserError(f'its tensors are not those of {describe(state)}: {"; ".join(found)}')
    return windows


def _expected(
    state: Mapping[str, Tensor], whole: bool
) -> tuple[dict[str, torch.Size], tuple[int, ...]]:
    """Shapes of a backbone of the sizes that a state dict shows; what it lacks gets a default."""
    dim, depths, ratio = _sizes(state)
    table = 'stages.{}.blocks.0.attn.relative_position_bias_table'
    tables = [state.get(table.format(i), torch.empty(1, 1)) for i in range(4)]
    windows = tuple((math.isqrt(len(table)) + 1) // 2 for table in tables)
    last = max((i for i in range(4) if depths[i] or whole), default=3)
    norms = {i for i in range(last) if f'norm{i}.weight' in state}
    with torch.device('meta'):
        model = GCViT(
            dict(
                dim=dim,
                depths=[max(depth, 1) for depth in depths],
                num_heads=[table.shape[1] for table in tables],
                mlp_ratio=ratio,
                layer_scale=1e-5 if 'stages.0.blocks.0.gamma1' in state else None,
                drop_path_rate=0.0,
            ),
            window_size=windows,
            out_indices=sorted(norms | {last}),
            in_channels=state.get('stem.conv.weight', torch.empty(1, 3)).shape[1],
        )
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return shapes, windows[: last + 1]


def _our_state(backbone: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, Tensor]:
    if not head:
        return backbone
    return {
        **{f'backbone.{name}': tensor for name, tensor in backbone.items()},
        **{f'head.fc.{name}': tensor for name, tensor in head.items()},
    }


def _timm_state(backbone: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {**backbone, **{f'head.{name}': tensor for name, tensor in head.items()}}
    return {
        _rename(name, _TO_TIMM): tensor[..., None, None] if '.se.fc' in name else tensor
        for name, tensor in ours.items()
    }


def shorten(names: Sequence[str], most: int = 8) -> str:
    """Some names, and dots for the rest."""
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')

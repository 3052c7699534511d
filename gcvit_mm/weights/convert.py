"""Conversion of a whole file: official, timm's and our checkpoints of GC ViT."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..models.gcvit import GCViT
from .names import TO_TIMM, Contents, describe, rename, shorten, sizes_of, sort_tensors


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
    dim, depths, ratio = sizes_of(state)
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
        rename(name, TO_TIMM): tensor[..., None, None] if '.se.fc' in name else tensor
        for name, tensor in ours.items()
    }

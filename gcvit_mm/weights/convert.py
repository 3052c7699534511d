"""Conversion of GC ViT checkpoints between the official naming, timm's and ours."""

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
    """A converted state dict, and the tensors of the source that it does not have."""

    naming: str  # naming of the source
    variant: str  # variant of the model, such as 'GC ViT tiny'
    windows: tuple[int, ...]  # side of the windows of each stage, in tokens
    classes: int  # number of classes; 0 without a classifier
    tensors: dict[str, Tensor]  # the converted tensors by name
    skipped: dict[str, list[str]]  # names of the other tensors of the source, by group


def convert(
    state: Mapping[str, Tensor], task: str, to: str = 'gcvit_mm', prefix: str | None = None
) -> Conversion:
    """Convert a state dict of any naming to 'gcvit_mm' or 'timm'.

    Each tensor is either converted or listed as skipped. The task 'classification' returns a
    classifier, in our naming that of mmpretrain's ``ImageClassifier`` with a ``LinearClsHead``;
    'dense' returns the backbone. With a prefix, only the tensors whose names begin with it are
    used, without it.
    """
    contents = sort_tensors(state, prefix)
    skipped = _other_modules(contents)
    if contents.index:
        skipped['index buffers, computed from the windows'] = contents.index
    backbone, head = contents.backbone, contents.head
    if task == 'classification':
        _check_classifier(contents)
    elif head:
        skipped['classifier'] = [f'head.{name}' for name in head]
        head = {}
    whole = task == 'classification' or to == 'timm'
    early = [name for name in backbone if whole and re.match(r'norm[0-2]\.', name)]
    if early:
        skipped['output norms of the first stages'] = early
        backbone = {name: tensor for name, tensor in backbone.items() if name not in early}
    return Conversion(
        naming=contents.naming,
        variant=describe(backbone),
        windows=_check_backbone(backbone, whole),
        classes=len(head['weight']) if head else 0,
        tensors=_timm_state(backbone, head) if to == 'timm' else _our_state(backbone, head),
        skipped=skipped,
    )


def _other_modules(contents: Contents) -> dict[str, list[str]]:
    """The names of the tensors outside the backbone, by module."""
    in_detector = re.search(r'backbone\.(0\.body\.)?$', contents.prefix)  # ours, or one of TAO
    if contents.others and not in_detector:
        unknown = shorten(list(contents.others))
        raise UserError(f'the file has unknown tensors: {unknown}')
    root = contents.prefix[: in_detector.start()] if in_detector else ''
    modules: dict[str, list[str]] = {}
    for name in contents.others:
        modules.setdefault(name.removeprefix(root).split('.')[0], []).append(name)
    return modules


def _check_classifier(contents: Contents) -> None:
    if set(contents.head) != {'weight', 'bias'}:
        raise UserError(
            'the file has no classifier with a linear head (weight and bias): convert only its '
            'backbone, with --task dense'
        )
    if contents.others:
        unexpected = shorten(list(contents.others))
        raise UserError(f'the file has tensors that a classifier does not have: {unexpected}')


def _check_backbone(state: Mapping[str, Tensor], whole: bool) -> tuple[int, ...]:
    """Compare the tensors with those of a backbone of equal sizes, and return its windows."""
    expected, windows = _expected(state, whole)
    problems = {
        'missing': [name for name in expected if name not in state],
        'unknown': [name for name in state if name not in expected],
        'of another shape': [
            name for name in expected if name in state and state[name].shape != expected[name]
        ],
    }
    descriptions = [
        f'{len(names)} tensors are {problem} ({shorten(names, 3)})'
        for problem, names in problems.items()
        if names
    ]
    if descriptions:
        raise UserError(f'the file does not fit {describe(state)}: {"; ".join(descriptions)}')
    return windows


def _expected(
    state: Mapping[str, Tensor], whole: bool
) -> tuple[dict[str, torch.Size], tuple[int, ...]]:
    """The shapes and windows of a backbone with the sizes of a state dict, or with defaults."""
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

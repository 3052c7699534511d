"""Conversion of DINO and Deformable DETR of NVIDIA's TAO toolkit to mmdet's names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .convert import convert
from .names import Renames, rename

_LAYER = [
    (r'^transformer\.(encoder|decoder)\.layers\.', r'\1.layers.'),
    (r'^(encoder\.layers\.\d+)\.norm1\.', r'\1.norms.0.'),
    (r'^(encoder\.layers\.\d+)\.norm2\.', r'\1.norms.1.'),
    (r'^(decoder\.layers\.\d+\.self_attn)\.', r'\1.attn.'),
    # TAO numbers the norms of a decoder's layer by age, mmdet by position.
    (r'^(decoder\.layers\.\d+)\.norm2\.', r'\1.norms.0.'),
    (r'^(decoder\.layers\.\d+)\.norm1\.', r'\1.norms.1.'),
    (r'^(decoder\.layers\.\d+)\.norm3\.', r'\1.norms.2.'),
    (r'\.linear1\.', '.ffn.layers.0.0.'),
    (r'\.linear2\.', '.ffn.layers.1.'),
]
_HEAD: Renames = [
    (r'^transformer\.decoder\.(?=(class|bbox)_embed\.)', ''),
    (r'^class_embed\.', 'bbox_head.cls_branches.'),
    (r'^bbox_embed\.', 'bbox_head.reg_branches.'),
    (r'^transformer\.enc_out_class_embed\.', 'bbox_head.cls_branches.{layers}.'),
    (r'^transformer\.enc_out_bbox_embed\.', 'bbox_head.reg_branches.{layers}.'),
    (r'(reg_branches\.[^.]+)\.layers\.(\d)', lambda m: f'{m[1]}.{2 * int(m[2])}'),
]
_REST = [
    (r'^transformer\.level_embed$', 'level_embed'),
    (r'^transformer\.enc_output\.', 'memory_trans_fc.'),
    (r'^transformer\.enc_output_norm\.', 'memory_trans_norm.'),
    (r'^transformer\.tgt_embed\.', 'query_embedding.'),
    (r'^query_embed\.', 'query_embedding.'),
    (r'^transformer\.reference_points\.', 'reference_points_fc.'),
    (r'^transformer\.decoder\.(?=norm\.|ref_point_head\.)', 'decoder.'),
    (r'^label_enc\.', 'dn_query_generator.label_embedding.'),
]
RENAMES: Renames = [*_LAYER, *_HEAD, *_REST]
"""Replacements that convert TAO's names to mmdet's, applied in order."""

_MARKER = 'transformer.level_embed'
_UNUSED_IDS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_ROWS = [i for i in range(91) if i not in _UNUSED_IDS]
"""COCO's ids of its 80 categories, among the 91 that TAO has a row for, in mmdet's order."""


@dataclass
class Detector:
    """A converted detector."""

    tensors: dict[str, Tensor]  # by mmdet's names
    config: str  # name of the config of its kind
    model: dict[str, Any]  # settings of ``model`` that the shapes of the tensors show
    skipped: dict[str, list[str]]  # names of tensors of the source that are not needed, by reason

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, if they are not COCO's: TAO's files do not have them."""
        rows = len(self.tensors['bbox_head.cls_branches.0.weight'])
        return () if rows == 80 else tuple(f'row {i}' for i in range(rows))


def convert_detector(state: Mapping[str, Tensor], all_rows: bool = False) -> Detector:
    """Convert a state dict of TAO's DINO or Deformable DETR with GC ViT.

    Every tensor is converted, or listed as skipped. Of the 91 rows for COCO's ids, the rows of the
    80 classes are taken, in mmdet's order, unless ``all_rows`` is True.

    Raises:
        UserError: The state dict is of another model, or two tensors that TAO ties differ.
    """
    prefix = next((k.removesuffix(_MARKER) for k in state if k.endswith(_MARKER)), None)
    if prefix is None:
        raise UserError(
            f"the file has no detector of NVIDIA's TAO with GC ViT, as {_MARKER} is missing: "
            'convert classifiers with --task classification, and backbones with --task dense'
        )
    body = f'{prefix}backbone.0.body.'
    backbone = convert({k: v for k, v in state.items() if k.startswith(body)}, 'dense')
    skipped = dict(backbone.skipped)
    tensors = {f'backbone.{name}': tensor for name, tensor in backbone.tensors.items()}
    stages = [i for i in range(4) if f'backbone.norm{i}.weight' in tensors]
    layers = len(_numbers(state, rf'{re.escape(prefix)}class_embed\.(\d+)\.weight'))
    for name, tensor in state.items():
        if name.startswith(body):
            continue
        target = _target(name, prefix, len(stages)).replace('{layers}', str(layers))
        if target not in tensors:
            tensors[target] = tensor
        elif torch.equal(tensors[target], tensor):
            skipped.setdefault('copies of tied tensors', []).append(name)
        else:
            raise UserError(
                f'{name} differs from its copy: the file is not one of TAO, which ties the two'
            )
    _select_classes(tensors, all_rows)
    dino = 'decoder.norm.weight' in tensors
    model = dict(
        backbone=dict(
            arch=backbone.variant.removeprefix('GC ViT '),
            window_size=backbone.windows,
            out_indices=tuple(stages),
        ),
        **_settings(tensors, stages),
    )
    if not dino:
        refined = f'{prefix}transformer.decoder.bbox_embed.0.layers.0.weight' in state
        model |= dict(num_feature_levels=len(tensors['level_embed']), with_box_refine=refined)
    config = f'{"dino" if dino else "deformable_detr"}_gcvit_tiny_tao_coco'
    return Detector(tensors, config, model, skipped)


def _target(name: str, prefix: str, stages: int) -> str:
    own = name.removeprefix(prefix)
    if match := re.fullmatch(r'input_proj\.(\d+)\.([01])\.(weight|bias)', own):
        level, part = int(match[1]), ('conv', 'gn')[int(match[2])]
        place = f'convs.{level}' if level < stages else f'extra_convs.{level - stages}'
        return f'neck.{place}.{part}.{match[3]}'
    target = rename(own, RENAMES)
    if target == own or not name.startswith(prefix):
        raise UserError(
            f'the file has the unknown tensor {name}: only DINO and Deformable DETR with GC ViT of '
            "TAO's standard two-stage and one-stage settings can be converted"
        )
    return target


def _select_classes(tensors: dict[str, Tensor], all_rows: bool) -> None:
    embedding = 'dn_query_generator.label_embedding.weight'
    if embedding in tensors:
        tensors[embedding] = tensors[embedding][:-1]  # the last row is that of no class
    for name, tensor in tensors.items():
        if (name == embedding or '.cls_branches.' in name) and len(tensor) == 91 and not all_rows:
            tensors[name] = tensor[COCO_ROWS]


def _numbers(names: Mapping[str, Tensor], pattern: str) -> set[int]:
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def _settings(tensors: Mapping[str, Tensor], stages: list[int]) -> dict[str, Any]:
    """Settings of both detectors, from the shapes of the tensors."""
    levels = len(tensors['level_embed'])

    def coder(kind: str, attention: str) -> dict[str, Any]:
        layer = f'{kind}.layers.0'
        weights = tensors[f'{layer}.{attention}.attention_weights.weight']
        points = len(weights) // (8 * levels)
        ffn = len(tensors[f'{layer}.ffn.layers.0.0.weight'])
        return dict(
            num_layers=1 + max(_numbers(tensors, rf'{kind}\.layers\.(\d+)\.')),
            layer_cfg={
                f'{attention}_cfg': dict(num_levels=levels, num_points=points),
                'ffn_cfg': dict(feedforward_channels=ffn),
            },
        )

    return dict(
        num_queries=len(tensors['query_embedding.weight']),
        neck=dict(
            in_channels=[len(tensors[f'backbone.norm{i}.weight']) for i in stages],
            num_outs=levels,
        ),
        encoder=coder('encoder', 'self_attn'),
        decoder=coder('decoder', 'cross_attn'),
        bbox_head=dict(num_classes=len(tensors['bbox_head.cls_branches.0.weight'])),
    )

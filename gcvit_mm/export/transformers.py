"""Graphs of DINO and Mask2Former, whose deformable attention samples feature maps.

mmdet's own code reads the sizes of the maps from tensors, which a graph for images of any size
cannot do. Samples are taken by ``grid_sample``: ONNX has it as an operator.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.layers import coordinate_to_encoding, inverse_sigmoid
from torch import Tensor, nn

Maps = Sequence[Tensor]
"""Feature maps of several levels, (N, C, H, W)."""


def tokens(maps: Maps) -> Tensor:
    """The cells of feature maps in a row, (N, cells, C)."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def centres(x: Tensor) -> Tensor:
    """The centres of the cells of a map as x and y from 0 to 1, (cells, 2)."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in x.shape[2:])
    rows, columns = torch.broadcast_tensors(rows[:, None], columns)
    return torch.stack([columns, rows], dim=2).flatten(0, 1)


def attend(
    attention: Any, query: Tensor, position: Tensor, memory: Tensor, maps: Maps, points: Tensor
) -> Tensor:
    """Compute mmcv's ``MultiScaleDeformableAttention`` for images without padding.

    Args:
        attention: The module.
        query: (N, Q, C).
        position: What is added to queries to find where they look.
        memory: What is sampled: the cells of all maps, (N, cells, C).
        maps: Feature maps of the sizes in ``memory``.
        points: Where the queries are from 0 to 1: x and y, or boxes of centre, width and height;
            (N or 1, Q, 2 or 4).
    """
    images, queries, _ = query.shape
    heads, count = attention.num_heads, attention.num_points
    asked = query + position
    offsets = attention.sampling_offsets(asked).view(images, queries, heads, len(maps), count, 2)
    weights = attention.attention_weights(asked).view(images, queries, heads, -1).softmax(dim=3)
    value = attention.value_proj(memory).unflatten(2, (heads, -1))
    sides = [(x.shape[2], x.shape[3]) for x in maps]
    sampled = []
    points = points[:, :, None, None]
    for level, part in enumerate(value.split([h * w for h, w in sides], dim=1)):
        height, width = sides[level]
        offset = offsets[:, :, :, level]
        if points.shape[-1] == 4:
            offset = offset / count * points[..., 2:] * 0.5
        else:
            offset = torch.stack([offset[..., 0] / width, offset[..., 1] / height], dim=4)
        at = (2 * (points[..., :2] + offset) - 1).transpose(1, 2).flatten(0, 1)
        part = part.permute(0, 2, 3, 1).reshape(images * heads, -1, height, width)
        sampled.append(F.grid_sample(part, at, align_corners=False))
    weights = weights.transpose(1, 2).reshape(images * heads, 1, queries, -1)
    mixed = (torch.cat(sampled, dim=3) * weights).sum(dim=3)
    mixed = mixed.view(images, -1, queries).transpose(1, 2)
    return attention.output_proj(mixed) + query


def encode(encoder: Any, maps: Maps, encoding: Any, levels: Tensor) -> Tensor:
    """Encode the cells of feature maps, given the position encoding and embeddings of levels."""
    x = tokens(maps)
    position = tokens(
        [
            encoding(None, input=each) + level[:, None, None]
            for each, level in zip(maps, levels, strict=True)
        ]
    )
    points = torch.cat([centres(each) for each in maps])[None]
    for layer in encoder.layers:
        x = layer.norms[0](attend(layer.self_attn, x, position, x, maps, points))
        x = layer.norms[1](layer.ffn(x))
    return x


def dino(model: Any, maps: Maps) -> tuple[Tensor, Tensor]:
    """The boxes (N, Q, 4) of DINO as centre, width and height from 0 to 1, and their logits."""
    head, decoder = model.bbox_head, model.decoder
    last = len(decoder.layers)
    memory = encode(model.encoder, maps, model.positional_encoding, model.level_embed)
    cells = [centres(x) for x in maps]
    sizes = [torch.full_like(x, 0.05 * 2.0**level) for level, x in enumerate(cells)]
    anchors = torch.cat([torch.cat(cells), torch.cat(sizes)], dim=1)
    inside = ((anchors > 0.01) & (anchors < 0.99)).all(dim=1, keepdim=True)
    proposed = model.memory_trans_fc(torch.where(inside, memory, 0.0))
    proposed = model.memory_trans_norm(proposed)
    best = head.cls_branches[last](proposed).amax(dim=2)
    index = best.topk(torch.sym_min(model.num_queries, best.shape[1]), dim=1)[1]
    anchors = torch.where(inside, torch.log(anchors / (1 - anchors)), torch.inf)
    boxes = head.reg_branches[last](proposed) + anchors
    boxes = boxes.gather(1, index[:, :, None].expand(-1, -1, 4)).sigmoid()
    query = model.query_embedding.weight[: boxes.shape[1]].expand(boxes.shape[0], -1, -1)
    frequencies = decoder.ref_point_head.layers[0].in_features // 4
    for layer, refine in zip(decoder.layers, head.reg_branches, strict=False):
        position = decoder.ref_point_head(coordinate_to_encoding(boxes, num_feats=frequencies))
        query = layer.self_attn(query, query, query, query_pos=position, key_pos=position)
        query = layer.norms[0](query)
        query = layer.norms[1](attend(layer.cross_attn, query, position, memory, maps, boxes))
        query = layer.norms[2](layer.ffn(query))
        before, boxes = boxes, (refine(query) + inverse_sigmoid(boxes, eps=1e-3)).sigmoid()
    query = decoder.norm(query)
    boxes = (head.reg_branches[last - 1](query) + inverse_sigmoid(before)).sigmoid()
    return boxes, head.cls_branches[last - 1](query)


class PixelDecoder(nn.Module):
    """The pixel decoder of Mask2Former, in the place of mmdet's ``MSDeformAttnPixelDecoder``."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.original = original

    def forward(self, maps: Maps) -> tuple[Tensor, list[Tensor]]:
        """Compute the feature map of the masks and those of the queries."""
        own: Any = self.original
        first = len(maps) - own.num_encoder_levels
        encoded = [conv(x) for conv, x in zip(own.input_convs, reversed(maps[first:]), strict=True)]
        memory = encode(own.encoder, encoded, own.postional_encoding, own.level_encoding.weight)
        parts = memory.split([x.shape[2] * x.shape[3] for x in encoded], dim=1)
        outs = [
            part.transpose(1, 2).unflatten(2, x.shape[2:])
            for part, x in zip(parts, encoded, strict=True)
        ]
        for level in reversed(range(first)):
            lateral = own.lateral_convs[level](maps[level])
            above = F.interpolate(outs[-1], lateral.shape[2:], mode='bilinear', align_corners=False)
            outs.append(own.output_convs[level](lateral + above))
        return own.mask_feature(outs[-1]), outs[: own.num_outs]


def mask2former(head: Any, maps: Maps, size: Any) -> Tensor:
    """The scores of the classes for each pixel of a Mask2Former of mmseg, (N, classes, H, W)."""
    logits, masks = (each[-1] for each in head(maps, None))
    masks = F.interpolate(masks, size, mode='bilinear', align_corners=False).sigmoid()
    return torch.einsum('nqc,nqhw->nchw', logits.softmax(dim=2)[..., :-1], masks)

"""DINO and Deformable DETR as NVIDIA's TAO toolkit computes them, for its trained weights.

A config that uses them has ``gcvit_mm.detectors`` in its ``custom_imports``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import Resize
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.detectors import DINO, DeformableDETR
from mmdet.models.layers import DinoTransformerDecoder, coordinate_to_encoding, inverse_sigmoid
from mmdet.registry import MODELS, TRANSFORMS
from torch import Tensor, nn


class _Decoder(DinoTransformerDecoder):
    """DINO's decoder that refines boxes up to 1e-5 from the border of an image; mmdet's: 1e-3."""

    def forward(
        self,
        query: Tensor,
        *,
        reference_points: Tensor,
        valid_ratios: Tensor,
        reg_branches: nn.ModuleList,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """Compute the queries and the boxes of each layer; see ``DinoTransformerDecoder``."""
        scale = valid_ratios.repeat(1, 1, 2)[:, None]
        frequencies = self.ref_point_head.layers[0].in_features // 4
        queries, boxes = [], [reference_points]
        for layer, branch in zip(self.layers, reg_branches, strict=False):
            scaled = boxes[-1].detach()[:, :, None] * scale
            encoded = coordinate_to_encoding(scaled[:, :, 0], num_feats=frequencies)
            query = layer(
                query,
                query_pos=self.ref_point_head(encoded),
                reference_points=scaled,
                valid_ratios=valid_ratios,
                **others,
            )
            refined = branch(query) + inverse_sigmoid(boxes[-1].detach(), eps=1e-5)
            queries.append(self.norm(query))
            boxes.append(refined.sigmoid())
        return torch.stack(queries), torch.stack(boxes)


@MODELS.register_module()
class TAODINO(DINO):
    """DINO with TAO's decoder; all its layers share one head for classes and one for boxes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for branches in (self.bbox_head.cls_branches, self.bbox_head.reg_branches):
            for i in range(1, self.decoder.num_layers):
                branches[i] = branches[0]

    def _init_layers(self) -> None:
        settings = vars(self)['decoder']  # a dict until the next line
        super()._init_layers()
        self.decoder = _Decoder(**settings)


@MODELS.register_module()
class TAODeformableDETR(DeformableDETR):
    """Deformable DETR that attends to padding, as TAO's does."""

    def pre_transformer(self, *args: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Prepare the inputs of encoder and decoder, without masks of the padding."""
        encoder, decoder = super().pre_transformer(*args, **kwargs)
        return {**encoder, 'feat_mask': None}, {**decoder, 'memory_mask': None}


@MODELS.register_module()
class FixedPadPreprocessor(DetDataPreprocessor):
    """Pads images to a fixed size in tests; the global query of GC ViT sees the padding.

    Args:
        sides: Shorter and longer side in pixels of the padded image, which is upright if the image
            is. Larger images are not padded.
        kwargs: Arguments of ``DetDataPreprocessor``.
    """

    def __init__(self, *args: Any, sides: tuple[int, int] = (800, 1333), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sides = sides

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise and stack images, and pad them with zeros on the right and below."""
        data = super().forward(data, training)
        if training:
            return data
        inputs, samples = data['inputs'], data['data_samples']
        upright = [height > width for height, width in (sample.img_shape for sample in samples)]
        sizes = [self.sides[::-1] if up else self.sides for up in upright]
        height, width = map(max, *sizes, inputs.shape[2:])
        missing = (0, width - inputs.shape[3], 0, height - inputs.shape[2])
        for sample in samples:
            sample.set_metainfo(dict(batch_input_shape=(height, width), pad_shape=(height, width)))
        return {'inputs': F.pad(inputs, missing), 'data_samples': samples}


@TRANSFORMS.register_module()
class ResizeShorterSide(BaseTransform):
    """Resizes the shorter side of an image to a length, by Pillow and DETR's rule of rounding.

    mmdet's ``Resize`` rounds the other side, where DETR and TAO truncate it.

    Args:
        scale: Length of the shorter side, and maximum length of the longer one, in pixels.
    """

    def __init__(self, scale: tuple[int, int]) -> None:
        self.short, self.longest = scale

    def transform(self, results: dict) -> dict:
        """Resize the image of a pipeline, with its boxes and masks."""
        height, width = results['img'].shape[:2]
        shorter, longer = sorted((height, width))
        short = self.short
        if longer / shorter * short > self.longest:
            short = round(self.longest * shorter / longer)
        size = [int(short * side / shorter) for side in (width, height)]
        return Resize(scale=tuple(size), backend='pillow').transform(results)

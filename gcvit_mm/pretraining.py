"""Pre-training of backbones on images without labels: masked images, and distillation of features.

A config that uses it has ``gcvit_mm.pretraining`` in its ``custom_imports``. Checkpoints are
``init_cfg`` of any config with a GC ViT of the arch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from .errors import ArgumentError

CELL = 32
"""Side in pixels of a cell of the last stage, and so of a mask."""


class _Pretraining(BaseModel):
    def __init__(self, backbone: dict, **settings: Any) -> None:
        super().__init__(**settings)
        self.backbone = MODELS.build({**backbone, 'out_indices': (3,)})
        self.channels = self.backbone.out_channels[0]

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """The losses of images (B, C, H, W), or the map of the last stage."""
        if mode == 'loss':
            return {'loss': self.loss(inputs)}
        return self.backbone(inputs)

    def loss(self, images: Tensor) -> Tensor:
        raise NotImplementedError


@MODELS.register_module()
class MaskedImageModeling(_Pretraining):
    """Hides cells of 32 x 32 pixels of an image, and reconstructs their pixels.

    The hidden cells are those of the last stage, so that no token sees parts of a hidden one.

    Args:
        backbone: Config of the backbone; only its last map is used.
        mask_ratio: Share of hidden cells.
        settings: Arguments of mmengine's ``BaseModel``.

    Source:
        Xie et al., SimMIM, https://arxiv.org/abs/2111.09886
    """

    def __init__(self, backbone: dict, mask_ratio: float = 0.6, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        if not 0 < mask_ratio < 1:
            raise ArgumentError(f'mask_ratio={mask_ratio} is not between 0 and 1')
        self.mask_ratio = mask_ratio
        colors = self.backbone.stem.conv.in_channels
        self.hidden = nn.Parameter(torch.zeros(colors, 1, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(self.channels, colors * CELL**2, 1), nn.PixelShuffle(CELL)
        )

    def mask(self, images: Tensor) -> Tensor:
        """A random mask of the cells of images, (B, 1, H, W): 1 where they are hidden."""
        batch, _, height, width = images.shape
        rows, columns = -(-height // CELL), -(-width // CELL)
        count = max(round(self.mask_ratio * rows * columns), 1)
        order = torch.rand(batch, rows * columns, device=images.device).argsort(1)
        cells = (order < count).to(images.dtype).view(batch, 1, rows, columns)
        whole = cells.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
        return whole[:, :, :height, :width]

    def loss(self, images: Tensor) -> Tensor:
        """Mean absolute error of the hidden pixels."""
        mask = self.mask(images)
        seen = images * (1 - mask) + self.hidden * mask
        pixels = self.decoder(self.backbone(seen)[0])[..., : images.shape[2], : images.shape[3]]
        return ((pixels - images).abs() * mask).sum() / (mask.sum() * images.shape[1])


@MODELS.register_module()
class FeatureDistillation(_Pretraining):
    """Trains a backbone to predict the features of a teacher, which is not in its checkpoints.

    Args:
        backbone: Config of the backbone; only its last map is used.
        teacher: Config of a backbone of any size: ``dict(type='mmpretrain.TIMMBackbone',
            model_name=NAME, pretrained=True)`` for timm's, or one of mmpretrain or a ``GCViT`` with
            an ``init_cfg``. Maps (B, C, h, w) and tokens (B, N, C) are both taken.
        settings: Arguments of mmengine's ``BaseModel``.
    """

    def __init__(self, backbone: dict, teacher: dict, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        network = MODELS.build(teacher)
        network.init_weights()
        network.eval()
        network.requires_grad_(False)
        # In a tuple it is no submodule: it is neither trained nor saved.
        self._teacher = (network,)
        channels = self.teach(torch.zeros(1, 3, 224, 224)).shape[1]
        self.projection = nn.Conv2d(self.channels, channels, 1)

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The normalised features of the teacher, (B, C, h, w)."""
        features = self._teacher[0].to(images.device)(images)
        features = features[-1] if isinstance(features, tuple | list) else features
        if features.dim() == 3:  # class tokens come first
            count = features.shape[1]
            rows = round((count * images.shape[2] / images.shape[3]) ** 0.5)
            columns = count // rows
            patches = features[:, count - rows * columns :]
            features = patches.transpose(1, 2).unflatten(2, (rows, columns))
        return F.layer_norm(features.movedim(1, 3), features.shape[1:2]).movedim(3, 1)

    def loss(self, images: Tensor) -> Tensor:
        """Smooth absolute error of the predicted features of each cell of the last stage."""
        student = self.projection(self.backbone(images)[0])
        teacher = F.interpolate(self.teach(images), student.shape[2:], mode='bilinear')
        return F.smooth_l1_loss(student, teacher)

"""Models as one graph from the pixels of images to named outputs, for images of any size."""

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from mmengine.utils import digit_version
from mmseg.models import Mask2FormerHead
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from ..inference.model import channels_of
from ..models.attention import WindowAttention, padded_attention, sdpa_attention
from ..models.gcvit import GCViT, Stage
from .transformers import PixelDecoder, mask2former

INPUT = 'image'
BAR = 1e-4
"""The largest difference of numbers: absolute up to 1, relative above."""
TORCH = '2.14'


class ImageModel(nn.Module):
    """The exported graph of a model, and the original model to compare it with."""

    # The axes of each output by name; the first axis is N, the images.
    outputs: dict[str, tuple[str | int, ...]]
    # Inputs beside the image, and their defaults.
    thresholds: dict[str, float] = {}
    mask_threshold: float | None = None
    mean: Tensor
    std: Tensor
    model: Any
    original: Any

    def __init__(self, model: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.size = size
        # Not registered as a submodule, because the file must not contain it.
        self.__dict__['original'] = model
        self.model = _exportable(model, is_static=size is not None)
        preprocessor = model.data_preprocessor
        self.channels = channels_of(model) or 3
        # The preprocessors leave the order of four channels as it is.
        self.is_rgb = self.channels == 3 and any(
            getattr(preprocessor, name, False)
            for name in ('_channel_conversion', 'channel_conversion', 'to_rgb')
        )
        mean = getattr(preprocessor, 'mean', None)
        self.register_buffer(
            'mean', torch.zeros(self.channels, 1, 1) if mean is None else mean.clone()
        )
        self.register_buffer(
            'std', torch.ones(self.channels, 1, 1) if mean is None else preprocessor.std
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the outputs for RGB images of shape (N, H, W, 3), uint8."""
        return self.compute(self.normalise(image))

    def normalise(self, image: Tensor) -> Tensor:
        """Normalise images, (N, H, W, 3) -> (N, 3, H, W)."""
        x = image.permute(0, 3, 1, 2).to(self.mean.dtype)
        x = x if self.is_rgb else x[:, self.bgr]
        return (x - self.mean) / self.std

    @property
    def bgr(self) -> list[int]:
        """The channels in the order of OpenCV."""
        return (
            [2, 1, 0, *range(3, self.channels)] if self.channels >= 3 else [*range(self.channels)]
        )

    def images(self, image: Tensor) -> list[Tensor]:
        """Images as for ``forward``, as the original model's preprocessor takes them."""
        return list(image.permute(0, 3, 1, 2)[:, self.bgr])

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the outputs for normalised images, (N, 3, H, W)."""
        raise NotImplementedError

    def expected(self, image: Tensor) -> Any:
        """Compute the outputs of the original model for images as for ``forward``."""
        self.cut = image.shape[1:3]  # of what preprocessors pad
        data: dict[str, list] = dict(inputs=self.images(image))
        if getattr(self.original.data_preprocessor, 'test_cfg', None):
            data['data_samples'] = [BaseDataElement() for _ in image]  # padding is recorded in them
        with torch.no_grad():
            return self.predict(self.original.data_preprocessor(data)['inputs'])

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of the original model for the output of its data preprocessor."""
        raise NotImplementedError

    def accepts(self, size: tuple[int, int]) -> bool:
        """Whether the original model predicts for images of a size."""
        return True

    def inputs(self) -> dict[str, Tensor]:
        """The inputs beside the image."""
        return {name: torch.tensor([value]) for name, value in self.thresholds.items()}

    def differences(self, actual: dict[str, Tensor], expected: Any) -> dict[str, float]:
        """The largest difference of each output, which may be as large as its bar in ``bars``."""
        return {name: deviation(actual[name], expected[name]) for name in self.outputs}

    @property
    def bars(self) -> dict[str, float]:
        """The largest difference of each output that is accepted."""
        return dict.fromkeys(self.outputs, BAR)


def pad(x: Tensor, divisor: int, value: float = 0) -> Tensor:
    """Pad images (N, C, H, W) below and on the right, to sides that are multiples."""
    # PyTorch's symbolic shapes simplify this expression, but not -side % divisor.
    below, beside = ((side + divisor - 1) // divisor * divisor - side for side in x.shape[2:])
    return F.pad(x, (0, beside, 0, below), value=value)


def deviation(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, absolute up to 1 and relative above; NaN counts as infinite."""
    if actual.shape != expected.shape:
        return torch.inf
    worst = ((actual - expected).abs() / expected.abs().clamp_min(1)).max()
    return float(worst.nan_to_num(nan=torch.inf))


class Features(ImageModel):
    """The feature maps of the backbone."""

    def __init__(self, model: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__(model, size)
        side = 256
        with torch.no_grad():
            maps = self.maps(model, torch.zeros(1, self.channels, side, side))
        strides = [side // x.shape[3] for x in maps]
        self.outputs = {
            f'stride{stride}': ('N', x.shape[1], f'ceil(H/{stride})', f'ceil(W/{stride})')
            for stride, x in zip(strides, maps, strict=True)
        }

    @staticmethod
    def maps(model: Any, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a model for normalised images."""
        return model.backbone(x)

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.outputs, self.maps(self.model, x), strict=True))

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        height, width = self.cut  # features are those of the image without padding
        maps = self.maps(self.original, inputs[:, :, :height, :width])
        return dict(zip(self.outputs, maps, strict=True))


class Pyramid(Features):
    """The feature maps of the neck of a detector, which its heads get."""

    @staticmethod
    def maps(model: Any, x: Tensor) -> tuple[Tensor, ...]:
        return model.extract_feat(x)


class Classifier(ImageModel):
    """The scores and logits of the classes."""

    outputs = dict(scores=('N', 'class'), logits=('N', 'class'))

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.model.head(self.model.extract_feat(x))
        return dict(scores=logits.softmax(dim=1), logits=logits)

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.original.extract_feat(inputs)
        samples = self.original.head.predict(features)
        scores = torch.stack([sample.pred_score for sample in samples])
        return dict(scores=scores, logits=self.original.head(features))


class Segmenter(ImageModel):
    """The logits of the classes for each pixel; a single one if the head has one channel."""

    outputs = dict(logits=('N', 'class', 'H', 'W'))

    def __init__(self, model: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__(model, size)
        head = self.model.decode_head
        self.mask_threshold = getattr(head, 'threshold', None)
        self.divisor = (model.data_preprocessor.test_cfg or {}).get('size_divisor') or 1
        if isinstance(head, Mask2FormerHead):
            head.pixel_decoder = PixelDecoder(head.pixel_decoder)

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        head = self.model.decode_head
        height, width = x.shape[2:]
        x = pad(x, self.divisor, self.original.data_preprocessor.pad_val)
        maps, size = self.model.extract_feat(x), x.shape[2:]
        if isinstance(head, Mask2FormerHead):
            logits = mask2former(head, maps, size)
        else:
            logits = F.interpolate(
                head(maps), size, mode='bilinear', align_corners=head.align_corners
            )
        return dict(logits=logits[:, :, :height, :width])

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        size = tuple(inputs.shape[2:])
        metainfo = [dict(ori_shape=size, img_shape=size, pad_shape=size)] * len(inputs)
        height, width = self.cut
        return dict(logits=self.original.encode_decode(inputs, metainfo)[:, :, :height, :width])


class Labeller(Segmenter):
    """The class of each pixel."""

    outputs = dict(labels=('N', 'H', 'W'))

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        logits = super().compute(x)['logits']
        scores = logits if logits.shape[1] > 1 else self.with_threshold(logits.sigmoid())
        dtype = torch.uint8 if scores.shape[1] <= 256 else torch.int32
        return dict(labels=scores.argmax(dim=1).to(dtype))

    def with_threshold(self, probability: Tensor) -> Tensor:
        """The scores of both classes, (N, 2, H, W), for a head with one channel."""
        threshold = torch.full_like(probability, self.original.decode_head.threshold)
        return torch.cat([threshold, probability], dim=1)

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        samples = self.original.predict(inputs)
        # The scores of mmseg are logits, but probabilities for a head with one channel.
        height, width = self.cut
        scores, labels = (
            torch.stack([sample.get(key).data[:, :height, :width] for sample in samples])
            for key in ('seg_logits', 'pred_sem_seg')
        )
        return dict(
            scores=scores if scores.shape[1] > 1 else self.with_threshold(scores), labels=labels
        )

    def differences(self, actual: dict[str, Tensor], expected: Any) -> dict[str, float]:
        """The largest deviation of the score of a chosen class from that of the right class."""
        chosen, right = (
            expected['scores'].gather(1, labels.long())
            for labels in (actual['labels'][:, None], expected['labels'])
        )
        return dict(labels=deviation(chosen, right))


def _exportable(model: Any, is_static: bool) -> Any:
    """A copy of a model with equal outputs, made of operations that can be exported."""
    model = copy.deepcopy(model).requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, WindowAttention):
            module.attention = sdpa_attention if is_static else padded_attention
        elif isinstance(module, GCViT):
            module.compile_sides = []
        elif isinstance(module, Stage):
            module.with_cp = False
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, _AdaptiveAvgPool(child.output_size))
    return model


class _AdaptiveAvgPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, for feature maps of any size."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            _pool_weights(length, bins, x)
            for length, bins in zip(x.shape[2:], self.size, strict=True)
        )
        return rows @ x @ columns.t()


def _pool_weights(length: int, bins: int, like: Tensor) -> Tensor:
    """The weight of each position of an axis in the mean of each bin, (bins, length)."""
    number = torch.arange(bins, device=like.device)
    start = (number * length).div(bins, rounding_mode='floor')
    stop = ((number + 1) * length + bins - 1).div(bins, rounding_mode='floor')
    at = torch.arange(length, device=like.device)
    inside = (at >= start[:, None]) & (at < stop[:, None])
    return inside.to(like.dtype) / (stop - start)[:, None]


def open_sizes() -> AbstractContextManager:
    """A context for tracing with open sizes, in which PyTorch does not choose attention kernels.

    The choice depends on the number of windows. The traced operation does not change: its kernel is
    chosen when it runs.
    """
    return sdpa_kernel(SDPBackend.MATH)


def trace(graph: ImageModel) -> ExportedProgram:
    """Trace a model for any number of images, and for any size unless the model has a fixed one."""
    if digit_version(torch.__version__) < digit_version(TORCH):
        raise UserError(f'export needs torch {TORCH} or later, this is {torch.__version__}')
    from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapeVar, TensorSpec

    # Models traced with Dim need at least two images, and feature maps of more than one token.
    batch = ShapeVar('batch', min=1)
    size = graph.size or (ShapeVar('height', min=1), ShapeVar('width', min=1))
    spec = ParamsSpec(
        {
            INPUT: TensorSpec([batch, *size, graph.channels]),
            **dict.fromkeys(graph.thresholds, TensorSpec([1])),
        }
    )
    example = torch.zeros(2, *(graph.size or (200, 300)), graph.channels, dtype=torch.uint8)
    try:
        # With gradients enabled, blocks join feature maps by operations that can be exported.
        with torch.enable_grad(), open_sizes():
            return torch.export.export(
                graph, (example, *graph.inputs().values()), dynamic_shapes=spec, strict=False
            )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f'{type(graph.original).__name__} cannot be traced: {reason}') from error

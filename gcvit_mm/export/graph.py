"""A model as one graph: from the pixels of images to named outputs, for images of any size."""

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from ..models.attention import WindowAttention, padded_attention, sdpa_attention
from ..models.gcvit import GCViT, Stage

INPUT = 'image'
TORCH = '2.14'


class ImageModel(nn.Module):
    """What is exported, and what it is compared with.

    Args:
        model: A model of mmdet, mmseg or mmpretrain, in evaluation mode.
        size: Height and width of all images in pixels; None leaves them open.

    Attributes:
        outputs: The outputs' axes by name; the first of them is N, the images.
    """

    outputs: dict[str, tuple[str | int, ...]]
    mean: Tensor
    std: Tensor
    model: Any
    original: Any

    def __init__(self, model: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.size = size
        # Not a module of this one: the file has no use for it.
        self.__dict__['original'] = model
        self.model = _exportable(model, is_static=size is not None)
        preprocessor = model.data_preprocessor
        self.is_rgb = any(
            getattr(preprocessor, name, False)
            for name in ('_channel_conversion', 'channel_conversion', 'to_rgb')
        )
        mean = getattr(preprocessor, 'mean', None)
        self.register_buffer('mean', torch.zeros(3, 1, 1) if mean is None else mean.clone())
        self.register_buffer('std', torch.ones(3, 1, 1) if mean is None else preprocessor.std)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the outputs.

        Args:
            image: RGB images of shape (N, H, W, 3), uint8.
        """
        x = image.permute(0, 3, 1, 2).to(self.mean.dtype)
        x = x if self.is_rgb else x.flip(1)
        return self.compute((x - self.mean) / self.std)

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs for normalised images, (N, 3, H, W)."""
        raise NotImplementedError

    def expected(self, image: Tensor) -> dict[str, Tensor]:
        """The outputs of the original model, by its own package; ``image`` as of ``forward``."""
        data: dict[str, list] = dict(inputs=list(image.flip(3).permute(0, 3, 1, 2)))
        if getattr(self.original.data_preprocessor, 'test_cfg', None):
            data['data_samples'] = [BaseDataElement() for _ in image]  # told what is padded
        with torch.no_grad():
            return self.predict(self.original.data_preprocessor(data)['inputs'])

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        """The outputs of the original model for what its pre-processor gives."""
        raise NotImplementedError

    def deviates(self, found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
        """How far outputs are from the expected ones: as ``deviation``, of the worst element."""
        return max(deviation(found[name], expected[name]) for name in self.outputs)


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of numbers above 1 in proportion to them; NaN counts as infinite."""
    if found.shape != expected.shape:
        return torch.inf
    worst = ((found - expected).abs() / expected.abs().clamp_min(1)).max()
    return float(worst.nan_to_num(nan=torch.inf))


class Features(ImageModel):
    """The maps of the backbone."""

    def __init__(self, model: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__(model, size)
        side = 256
        with torch.no_grad():
            maps = self.maps(model, torch.zeros(1, 3, side, side))
        strides = [side // x.shape[3] for x in maps]
        self.outputs = {
            f'stride{stride}': ('N', x.shape[1], f'ceil(H/{stride})', f'ceil(W/{stride})')
            for stride, x in zip(strides, maps, strict=True)
        }

    @staticmethod
    def maps(model: Any, x: Tensor) -> tuple[Tensor, ...]:
        """The maps of a model for normalised images."""
        return model.backbone(x)

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.outputs, self.maps(self.model, x), strict=True))

    def expected(self, image: Tensor) -> dict[str, Tensor]:
        """As of any model; what the pre-processor of a detector pads is not part of the image."""
        self.cut = image.shape[1:3]
        return super().expected(image)

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        height, width = self.cut
        maps = self.maps(self.original, inputs[:, :, :height, :width])
        return dict(zip(self.outputs, maps, strict=True))


class Pyramid(Features):
    """The maps that the heads of a detector see: those of its neck."""

    @staticmethod
    def maps(model: Any, x: Tensor) -> tuple[Tensor, ...]:
        return model.extract_feat(x)


class Classifier(ImageModel):
    """Scores of classes."""

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
    """Logits of classes for each pixel."""

    outputs = dict(logits=('N', 'class', 'H', 'W'))

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        head = self.model.decode_head
        logits = F.interpolate(
            head(self.model.extract_feat(x)),
            x.shape[2:],
            mode='bilinear',
            align_corners=head.align_corners,
        )
        return dict(logits=logits)

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        samples = self.original.predict(inputs)
        return dict(logits=torch.stack([sample.seg_logits.data for sample in samples]))


class Labeller(Segmenter):
    """The class of each pixel."""

    outputs = dict(labels=('N', 'H', 'W'))

    def compute(self, x: Tensor) -> dict[str, Tensor]:
        logits = super().compute(x)['logits']
        dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int32
        return dict(labels=logits.argmax(dim=1).to(dtype))

    def deviates(self, found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
        """By how much a class was not the best one, in logits."""
        logits = expected['logits']
        chosen = logits.gather(1, found['labels'].long()[:, None])
        return deviation(chosen[:, 0], logits.amax(dim=1))


def build_graph(
    model: Any, task: str, features: bool, argmax: bool, size: tuple[int, int] | None
) -> ImageModel:
    """Prepare a model for its export.

    Args:
        model: A model of mmdet, mmseg or mmpretrain, in evaluation mode.
        task: 'detection', 'segmentation' or 'classification'.
        features: Take the backbone alone, of a detector with its neck.
        argmax: Of a segmenter, give classes instead of their logits.
        size: Height and width of all images in pixels; None leaves them open.

    Raises:
        UserError: It cannot be exported.
    """
    if not isinstance(model.backbone, GCViT):
        raise UserError(f'the backbone is {type(model.backbone).__name__}, only GCViT is exported')
    if argmax and (task != 'segmentation' or features):
        raise UserError('--argmax is for models of segmentation')
    if features:
        return (Pyramid if task == 'detection' else Features)(model, size)
    if task == 'classification':
        _check_classifier(model)
        return Classifier(model, size)
    if task == 'segmentation':
        _check_segmenter(model)
        # Tiling is left to whoever runs the file. The caller's model keeps its mode.
        model = copy.copy(model)
        model.test_cfg = copy.copy(model.test_cfg)
        model.test_cfg['mode'] = 'whole'
        return (Labeller if argmax else Segmenter)(model, size)
    raise UserError(
        'detectors are not exported as a whole: their number of boxes depends on the image, and '
        'mmdet decides by it in Python. --what features exports backbone and neck'
    )


def _check_classifier(model: Any) -> None:
    from mmpretrain.models import ClsHead, ImageClassifier, MultiLabelClsHead

    head = model.head
    own = isinstance(head, ClsHead) and not isinstance(head, MultiLabelClsHead)
    if not isinstance(model, ImageClassifier) or not own:
        raise UserError(
            f'{type(model).__name__} with {type(head).__name__} is not exported: of classifiers, '
            'those are whose head gives one score for each class'
        )


def _check_segmenter(model: Any) -> None:
    from mmseg.models import EncoderDecoder
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head = model.decode_head
    # Heads with a prediction of their own do more than to give logits.
    usual = isinstance(head, BaseDecodeHead) and all(
        getattr(type(head), name) is getattr(BaseDecodeHead, name)
        for name in ('predict', 'predict_by_feat')
    )
    if not isinstance(model, EncoderDecoder) or not usual:
        raise UserError(
            f'{type(model).__name__} with {type(head).__name__} is not exported: of segmenters, '
            'those are whose head gives a map of logits, as UPerHead does'
        )
    if model.data_preprocessor.test_cfg:
        raise UserError(
            'data_preprocessor.test_cfg pads images, which is not exported: remove it, GC ViT '
            'takes any size'
        )


def _exportable(model: Any, is_static: bool) -> Any:
    """A copy of a model that computes the same, in operations which a graph can hold."""
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
                setattr(module, name, _CellMeans(child.output_size))
    return model


class _CellMeans(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products of matrices, for maps of any size."""

    def __init__(self, cells: Any) -> None:
        super().__init__()
        self.cells = (cells, cells) if isinstance(cells, int) else tuple(cells)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            _shares(length, count, x) for length, count in zip(x.shape[2:], self.cells, strict=True)
        )
        return rows @ x @ columns.t()


def _shares(length: int, cells: int, like: Tensor) -> Tensor:
    """What each position of an axis adds to the mean of each cell, (cells, length)."""
    cell = torch.arange(cells, device=like.device)
    start = (cell * length).div(cells, rounding_mode='floor')
    stop = ((cell + 1) * length + cells - 1).div(cells, rounding_mode='floor')
    at = torch.arange(length, device=like.device)
    inside = (at >= start[:, None]) & (at < stop[:, None])
    return inside.to(like.dtype) / (stop - start)[:, None]


def open_sizes() -> AbstractContextManager:
    """What tracing needs: to choose a kernel for attention, PyTorch asks how many windows it has.

    In the graph is the same operation, for which a kernel is chosen when it runs.
    """
    return sdpa_kernel(SDPBackend.MATH)


def trace(graph: ImageModel) -> ExportedProgram:
    """Trace a model: the number of images stays open, and their size if it is not given.

    Raises:
        UserError: It cannot be traced.
    """
    if digit_version(torch.__version__) < digit_version(TORCH):
        raise UserError(f'export needs torch {TORCH} or later, this is {torch.__version__}')
    from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapeVar, TensorSpec

    # Not Dim: what is traced with it asks for two images at least, and for more than a cell.
    batch = ShapeVar('batch', min=1)
    size = graph.size or (ShapeVar('height', min=1), ShapeVar('width', min=1))
    spec = ParamsSpec({INPUT: TensorSpec([batch, *size, 3])})
    example = torch.zeros(2, *(graph.size or (200, 300)), 3, dtype=torch.uint8)
    try:
        # With gradients, blocks put maps together in a way that graphs can hold.
        with torch.enable_grad(), open_sizes():
            return torch.export.export(graph, (example,), dynamic_shapes=spec, strict=False)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f'{type(graph.original).__name__} cannot be traced: {reason}') from error

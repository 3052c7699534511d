"""Models for benchmarks: GC ViT, other backbones, and the whole models of configs."""

import copy
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..config import build_model
from ..errors import UserError
from ..models.archs import ARCHS
from ..models.gcvit import GCViT

PEERS: dict[str, dict[str, Any]] = {
    'swin_tiny': dict(type='mmdet.SwinTransformer'),
    'convnext_tiny': dict(
        type='mmpretrain.ConvNeXt', out_indices=(0, 1, 2, 3), gap_before_final_norm=False
    ),
    'resnet50': dict(type='mmdet.ResNet', depth=50),
}
"""Configs of other backbones in OpenMMLab, by the names that commands use."""

OURS, TIMM = 'gcvit_', 'timm_'
OBJECTS = 10  # in each random image


@dataclass
class Subject:
    """A model and the step that is timed."""

    name: str  # name of the model, with its options
    model: nn.Module  # the model, on its device
    step: Callable[[], object]  # the forward pass; for training, forward and backward pass

    def nbytes(self) -> int:
        """Size of the parameters and buffers in bytes."""
        return sum(x.nbytes for x in (*self.model.parameters(), *self.model.buffers()))


@dataclass
class Spec:
    """The parts of ``NAME[:key=value ...][:compile]``."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    compile: bool = False
    counted: bool = False

    def adapt(self, backbone: dict[str, Any]) -> None:
        """Choose an attention whose FLOPs can be counted, for a GC ViT."""
        if self.counted and backbone.get('attn_impl') != 'eager':
            backbone['attn_impl'] = 'sdpa'


def parse_spec(text: str) -> Spec:
    """Parse the name of a model with options, whose values are parsed as for ``--cfg-options``."""
    name, *parts = re.split('(?<!:):(?!:)', text)  # mmdet::CONFIG is one name
    spec = Spec(name)
    for part in parts:
        key, equals, value = part.partition('=')
        if part == 'compile':
            spec.compile = True
        elif equals and key:
            spec.options[key] = DictAction._parse_iterable(value)
        else:
            raise UserError(f'{text}: {part!r} must be key=value or compile')
    return spec


def build_subject(
    text: str,
    *,
    batch: int,
    size: tuple[int, int],
    training: bool,
    dtype: torch.dtype,
    device: torch.device,
    counted: bool = False,
) -> Subject:
    """Build a model with random weights, random images, and the step to time.

    The text is ``gcvit_`` with an arch, a key of ``PEERS``, ``timm_`` with a name of timm, or the
    path of a config, followed by options such as ``:window_size=7,7,14,7`` (for configs
    ``:model.backbone.with_cp=True``) and ``:compile``. With ``counted``, ``count_work`` can count
    all FLOPs of GC ViT. Autocast is used for other types than float32.
    """
    spec = parse_spec(text)
    spec.counted = counted
    torch.manual_seed(0)
    build = _whole_model if spec.name.endswith('.py') else _backbone
    model, forward, backward = build(spec, batch, size, device, training)
    model.train(training)
    full = dtype == torch.float32
    autocast: Any = nullcontext() if full else torch.autocast(device.type, dtype)

    def infer() -> None:
        with torch.no_grad(), autocast:
            forward()

    def train() -> None:
        model.zero_grad(set_to_none=True)
        with autocast:
            out = forward()
        backward(out)

    return Subject(text, model, train if training else infer)


_Parts = tuple[nn.Module, Callable[[], Any], Callable[[Any], None]]


def _backbone(
    spec: Spec, batch: int, size: tuple[int, int], device: torch.device, training: bool
) -> _Parts:
    model: Any = _build_backbone(spec).to(device)
    if spec.compile and not spec.counted:
        model.compile(dynamic=False)
    images = torch.randn(batch, 3, *size, device=device)
    cotangents: list[Tensor] = []

    def forward() -> list[Tensor]:
        outs = model(images)
        return list(outs) if isinstance(outs, list | tuple) else [outs]

    def backward(outs: list[Tensor]) -> None:
        if not cotangents:
            cotangents.extend(torch.randn_like(out) for out in outs)
        torch.autograd.backward(outs, cotangents)

    return model, forward, backward


def _build_backbone(spec: Spec) -> nn.Module:
    try:
        if spec.name.startswith(TIMM):
            return _timm_backbone(spec)
        if spec.name.removeprefix(OURS) in ARCHS and spec.name.startswith(OURS):
            spec.adapt(spec.options)
            return GCViT(spec.name.removeprefix(OURS), **spec.options)
        if spec.name in PEERS:
            return MODELS.build({**PEERS[spec.name], **spec.options})
    except TypeError as error:
        raise UserError(f'{spec.name} does not accept these options: {error}') from error
    names = [*(f'{OURS}{arch}' for arch in ARCHS), *PEERS]
    raise UserError(
        f'model {spec.name} is unknown: choose {", ".join(names)}, {TIMM}NAME, or a config file'
    )


def _timm_backbone(spec: Spec) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f'{spec.name} needs timm: pip install timm') from error
    name = spec.name.removeprefix(TIMM)
    try:
        model: Any = timm.create_model(name, **spec.options)
    except RuntimeError as error:
        raise UserError(f'timm has no model {name}: {error}') from error
    model.forward = model.forward_features  # without the classifier, like other backbones
    model.reset_classifier(0)
    return model


def _whole_model(
    spec: Spec, batch: int, size: tuple[int, int], device: torch.device, training: bool
) -> _Parts:
    try:
        read = get_config if '::' in spec.name else Config.fromfile
        cfg = read(spec.name)
    except Exception as error:  # a config is Python code and may raise any error
        raise UserError(f'config {spec.name} cannot be read: {error}') from error
    try:
        cfg.merge_from_dict(spec.options)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f'{spec.name}: an option does not fit the config: {error}') from error
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    if cfg.model.backbone.type == 'GCViT':
        spec.adapt(cfg.model.backbone)
    model: Any = build_model(cfg)
    model.init_weights()
    model.to(device)
    if spec.compile and not spec.counted:
        model.backbone.compile(dynamic=False)
    data = _SAMPLES[cfg.default_scope](model, batch, size)

    def forward() -> Any:
        # The data preprocessor may change its input.
        inputs = model.data_preprocessor(copy.deepcopy(data), training)
        if not training:
            return model(**inputs, mode='predict')
        return model.parse_losses(model(**inputs, mode='loss'))[0]

    def backward(loss: Tensor) -> None:
        loss.backward()

    return model, forward, backward


def _detection_samples(model: Any, batch: int, size: tuple[int, int]) -> dict:
    from mmdet.testing import demo_mm_inputs

    counts = [getattr(module, 'num_classes', 0) for module in model.modules()]
    classes = max(count for count in counts if isinstance(count, int))
    objects = dict(num_items=[OBJECTS] * batch, num_classes=classes, with_mask=True)
    return demo_mm_inputs(batch, [(3, *size)] * batch, **objects)


def _segmentation_samples(model: Any, batch: int, size: tuple[int, int]) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(batch):
        labels = torch.randint(model.decode_head.num_classes, (1, *size))
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        samples.append(SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels)))
    return dict(inputs=_images(batch, size), data_samples=samples)


def _classification_samples(model: Any, batch: int, size: tuple[int, int]) -> dict:
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(i % model.head.num_classes) for i in range(batch)]
    return dict(inputs=_images(batch, size), data_samples=samples)


def _images(batch: int, size: tuple[int, int]) -> list[Tensor]:
    return [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(batch)]


_SAMPLES = {
    'mmdet': _detection_samples,
    'mmseg': _segmentation_samples,
    'mmpretrain': _classification_samples,
}

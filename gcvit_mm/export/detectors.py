"""Graphs of mmdet's detectors, made of their own modules.

Images have a fixed number of slots for boxes, so that graphs hold batches of any size. An empty
slot has the score ``NONE``.
"""

from typing import Any

import torch
import torchvision
from mmdet.models.dense_heads import AnchorHead, DINOHead, RPNHead
from mmdet.models.detectors import DINO, TwoStageDetector
from mmdet.models.layers import DeformableDetrTransformerEncoder, DinoTransformerDecoder
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..errors import UserError
from .graph import ImageModel, pad
from .objects import differences
from .operators import NONE, nms
from .transformers import dino


def decode(coder: Any, boxes: Tensor, deltas: Tensor, size: Any) -> Tensor:
    """Move and scale boxes (..., 4), and cut them to the height and width of the image."""
    flat = coder.decode(boxes.reshape(-1, 4), deltas.reshape(-1, 4), max_shape=size)
    return flat.view(boxes.shape)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Gather rows: (N, P, 4) by (N, K) gives (N, K, 4)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def top(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest of the scores (N, P) in descending order, and their indices, (N, K)."""
    return scores.topk(torch.sym_min(most, scores.shape[1]), dim=1)


def dense_boxes(
    head: Any, maps: Any, size: Any, by_level: bool, thresholds: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes (N, K, 4), scores and labels (N, K) of an anchor head, after NMS.

    NMS is ``by_level`` of the feature maps for proposals, and by class for detections.
    """
    config = head.test_cfg
    logits, deltas = head(maps)
    priors = head.prior_generator.grid_priors([x.shape[2:] for x in logits], device='cpu')
    levels = []
    for level, (logit, delta, prior) in enumerate(zip(logits, deltas, priors, strict=True)):
        images = logit.shape[0]
        logit = logit.permute(0, 2, 3, 1).reshape(images, -1, head.cls_out_channels)
        score = logit.sigmoid() if head.use_sigmoid_cls else logit.softmax(2)[..., :-1]
        classes = score.shape[2]
        score = score.flatten(1)
        most = config.get('nms_pre', -1)
        score, index = top(score, most if most > 0 else score.shape[1])
        label = torch.full_like(index, level) if by_level else index % classes
        index = index.div(classes, rounding_mode='floor')
        delta = pick(delta.permute(0, 2, 3, 1).reshape(images, -1, 4), index)
        prior = pick(prior[None].expand(images, -1, -1), index)
        levels.append((decode(head.bbox_coder, prior, delta, size), score, label))
    boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    smallest = config.get('min_bbox_size', -1)
    if smallest >= 0:
        sides = boxes[..., 2:] - boxes[..., :2]
        scores = torch.where((sides > smallest).all(dim=2), scores, NONE)
    groups = torch.arange(len(levels) if by_level else classes)[:, None]
    scores = torch.where(labels[:, None] == groups, scores[:, None], NONE)
    scores, index = top(nms(boxes, scores, *thresholds).amax(dim=1), config.max_per_img)
    return pick(boxes, index), scores, labels.gather(1, index)


def roi_features(extractor: Any, maps: Any, rois: Tensor) -> Tensor:
    """Features of regions of interest (R, 5), each from the feature map for its size."""
    layers = extractor.roi_layers
    levels = extractor.map_roi_levels(rois, len(layers))
    out = rois.new_zeros(rois.shape[0], extractor.out_channels, *layers[0].output_size)
    for level, (layer, x) in enumerate(zip(layers, maps, strict=False)):
        own = (levels == level).nonzero()[:, 0]
        features = torchvision.ops.roi_align(
            x,
            rois[own],
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        out = out.index_put((own,), features)
    return out


class Detector(ImageModel):
    """The boxes, scores, labels and masks of objects, in slots by descending score.

    An image has as many slots as ``max_per_img`` of its config, or fewer if it is tiny. An empty
    slot has the label -1, and zeros.
    """

    def __init__(self, model: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__(model, size)
        config = model.test_cfg.get('rcnn', model.test_cfg)
        if 'nms' in config:
            self.thresholds = dict(
                score_threshold=config.score_thr, iou_threshold=config.nms.iou_threshold
            )
        self.mask_threshold = config.get('mask_thr_binary', 0.5)
        self.outputs = dict(boxes=('N', 'K', 4), scores=('N', 'K'), labels=('N', 'K'))
        if getattr(model, 'with_mask', False):
            self.outputs['masks'] = ('N', 'K', 28, 28)

    def forward(
        self,
        image: Tensor,
        score_threshold: Tensor | None = None,
        iou_threshold: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Detect objects in RGB images of shape (N, H, W, 3), uint8; thresholds are (1,)."""
        x = self.normalise(image)
        height, width = x.shape[2:]
        maps = self.model.extract_feat(pad(x, self.original.data_preprocessor.pad_size_divisor))
        thresholds = iou_threshold, score_threshold
        boxes, scores, labels, masks = self.detect(maps, (height, width), thresholds)
        is_object = scores >= 0
        found = dict(
            boxes=boxes * is_object[:, :, None],
            scores=scores.clamp(min=0),
            labels=torch.where(is_object, labels, -1),
        )
        return found if masks is None else {**found, 'masks': masks}

    def expected(self, image: Tensor) -> list[dict[str, Any]]:
        """The objects of each image by the original model: mmdet's own prediction."""
        size = tuple(image.shape[1:3])
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        data = dict(
            inputs=self.images(image),
            data_samples=[DetDataSample(metainfo=meta) for _ in image],
        )
        head = getattr(self.original, 'roi_head', None) or self.original.bbox_head
        config = head.test_cfg
        head.test_cfg = ConfigDict(config, score_thr=self.score_threshold)
        with torch.no_grad():
            found = [sample.pred_instances for sample in self.original.test_step(data)]
        head.test_cfg = config
        names = dict(boxes='bboxes', scores='scores', labels='labels', masks='masks')
        return [
            dict(size=size, **{name: one[names[name]] for name in self.outputs}) for one in found
        ]

    def differences(self, actual: dict[str, Tensor], expected: Any) -> dict[str, float]:
        return differences(actual, expected, self.score_threshold, self.mask_threshold or 0.5)

    @property
    def score_threshold(self) -> float:
        """The minimum score of an object."""
        return self.thresholds.get('score_threshold', 0.0)

    @property
    def bars(self) -> dict[str, float]:
        return dict(boxes=0.5, scores=1e-3, masks=0.01)

    def detect(self, maps: Any, size: Any, thresholds: Any) -> Any:
        """Boxes, scores, negative for empty slots, labels and masks or None."""
        raise NotImplementedError


class OneStage(Detector):
    """A detector whose anchors are its detections, such as RetinaNet."""

    def detect(self, maps: Any, size: Any, thresholds: tuple[Tensor, Tensor]) -> Any:
        return *dense_boxes(self.model.bbox_head, maps, size, False, thresholds), None


class Queries(Detector):
    """DINO, which needs no NMS."""

    def detect(self, maps: Any, size: Any, thresholds: Any) -> Any:
        boxes, logits = dino(self.model, maps)
        most = self.model.test_cfg.get('max_per_img', self.model.num_queries)
        scores, index = top(logits.sigmoid().flatten(1), most)
        labels = index % logits.shape[2]
        boxes = pick(boxes, index.div(logits.shape[2], rounding_mode='floor'))
        sides = boxes.new_ones(2) * torch.stack([torch.scalar_tensor(x) for x in size[::-1]])
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = [
            ((x * sides).clamp(min=0)).minimum(sides) for x in (centre - half, centre + half)
        ]
        return torch.cat(corners, dim=2), scores, labels, None

    def accepts(self, size: tuple[int, int]) -> bool:
        """Whether mmdet predicts for a size, whose maps need as many cells as there are queries."""
        with torch.no_grad():
            maps = self.original.extract_feat(torch.zeros(1, self.channels, *size))
        return sum(x[0, 0].numel() for x in maps) >= self.original.num_queries


class TwoStage(Detector):
    """Faster, Mask and Cascade R-CNN."""

    def detect(self, maps: Any, size: Any, thresholds: tuple[Tensor, Tensor]) -> Any:
        rpn, head = self.model.rpn_head, self.model.roi_head
        own = torch.tensor([NONE / 2]), torch.tensor([rpn.test_cfg.nms.iou_threshold])
        boxes, proposed, _ = dense_boxes(rpn, maps, size, True, own[::-1])
        images, slots = proposed.shape
        number = torch.arange(images)[:, None, None].expand(-1, slots, -1).to(boxes.dtype)
        stages = self.stages(head.bbox_head, head.bbox_roi_extractor)
        logits: Any = 0.0
        for stage, (box_head, extractor) in enumerate(stages):
            rois = torch.cat([number, boxes], dim=2).flatten(0, 1)
            logit, delta = box_head(roi_features(extractor, maps, rois))
            logits = logits + logit
            delta = delta.view(images, slots, -1, 4)
            if stage < len(stages) - 1:
                if delta.shape[2] > 1:
                    label = logit[:, :-1].argmax(dim=1).view(images, slots, 1, 1)
                    delta = delta.gather(2, label.expand(-1, -1, -1, 4))
                boxes = decode(box_head.bbox_coder, boxes, delta[:, :, 0], size)
        scores = (logits / len(stages)).softmax(1)[:, :-1].view(images, slots, -1)
        scores = torch.where(proposed[:, :, None] >= 0, scores, NONE)
        boxes = decode(
            box_head.bbox_coder, boxes[:, :, None].expand(-1, -1, delta.shape[2], -1), delta, size
        )
        own_boxes, classes = delta.shape[2], scores.shape[2]  # boxes may be shared by all classes
        by_class = scores.transpose(1, 2)
        kept = nms(
            boxes.transpose(1, 2).flatten(0, 1),
            by_class.reshape(-1, classes // own_boxes, slots),
            *thresholds,
        ).view(by_class.shape)
        scores, index = top(kept.transpose(1, 2).flatten(1), head.test_cfg.max_per_img)
        boxes = pick(boxes.expand(-1, -1, classes, -1).flatten(1, 2), index)
        labels = index % classes
        return (
            boxes,
            scores,
            labels,
            self.masks(maps, boxes, scores, labels) if head.with_mask else None,
        )

    def stages(self, heads: Any, extractors: Any) -> list[tuple[Any, Any]]:
        """The heads and RoI extractors of a cascade, or of the only stage."""
        is_cascade = hasattr(self.model.roi_head, 'num_stages')
        return list(zip(heads, extractors, strict=True)) if is_cascade else [(heads, extractors)]

    def masks(self, maps: Any, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """The probability of each pixel of the boxes, (N, K, 28, 28)."""
        head = self.model.roi_head
        image, slot = (scores >= 0).nonzero().unbind(1)
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes[image, slot]], dim=1)
        probability: Any = 0.0
        stages = self.stages(head.mask_head, head.mask_roi_extractor)
        for mask_head, extractor in stages:
            probability = probability + mask_head(roi_features(extractor, maps, rois)).sigmoid()
        probability = probability / len(stages)
        label = torch.zeros_like(slot) if mask_head.class_agnostic else labels[image, slot]
        side = probability.shape[2:]
        probability = probability.gather(1, label[:, None, None, None].expand(-1, -1, *side))
        nothing = probability.new_zeros(*scores.shape, *side)
        return nothing.index_put((image, slot), probability[:, 0])


def detector(model: Any, size: tuple[int, int] | None) -> Detector:
    """The graph of a detector, which must have heads that the graph computes."""
    roi, is_two_stage = getattr(model, 'roi_head', None), isinstance(model, TwoStageDetector)
    is_dino = isinstance(model, DINO)
    parts = [roi, model.rpn_head] if is_two_stage else [getattr(model, 'bbox_head', None)]
    parts += [model, model.encoder, model.decoder] if is_dino else []
    for name in ('bbox_head', 'mask_head', 'bbox_roi_extractor', 'mask_roi_extractor'):
        part = getattr(roi, name, None)
        parts += [] if part is None else part if isinstance(part, nn.ModuleList) else [part]
    for part in parts:
        kinds = [kind for kind in PARTS if isinstance(part, kind)]
        # A class that overrides prediction computes something else.
        if not kinds or any(
            getattr(type(part), x) is not getattr(kinds[0], x) for x in PARTS[kinds[0]]
        ):
            raise UserError(
                f'{type(model).__name__} with {type(part).__name__} cannot be exported as a whole: '
                'pass --what features to export backbone and neck'
            )
    if getattr(roi, 'with_shared_head', False):
        raise UserError('roi_head.shared_head cannot be exported: pass --what features')
    if is_dino:
        if model.data_preprocessor.pad_size_divisor > 1 or not model.bbox_head.loss_cls.use_sigmoid:
            raise UserError(
                'DINO with pad_size_divisor above 1 or without use_sigmoid cannot be exported as a '
                'whole: pass --what features'
            )
        return Queries(model, size)
    for config in [model.test_cfg.rcnn, model.test_cfg.rpn] if is_two_stage else [model.test_cfg]:
        if config.nms.get('type', 'nms') != 'nms' or config.nms.get('class_agnostic'):
            raise UserError(f'test_cfg.nms = {dict(config.nms)} cannot be exported: use type=nms')
    return (TwoStage if is_two_stage else OneStage)(model, size)


_BOXES = ('predict_by_feat', '_predict_by_feat_single')
_STAGES = ('predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward')
PARTS: dict[type, tuple[str, ...]] = {
    RPNHead: (*_BOXES, '_bbox_post_process'),
    AnchorHead: (*_BOXES, '_bbox_post_process', 'predict'),
    CascadeRoIHead: (
        'predict_bbox',
        'predict_mask',
        '_refine_roi',
        '_bbox_forward',
        '_mask_forward',
    ),
    StandardRoIHead: ('predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward'),
    BBoxHead: (*_BOXES, 'regress_by_class'),
    FCNMaskHead: _BOXES,
    SingleRoIExtractor: ('forward', 'map_roi_levels'),
    DINO: ('forward_transformer', 'pre_transformer', 'pre_decoder', 'forward_decoder'),
    DeformableDetrTransformerEncoder: ('forward',),
    DinoTransformerDecoder: ('forward',),
    DINOHead: ('forward', 'predict', *_BOXES),
}
"""The parts of detectors that the graphs compute, and their methods that the graphs replace."""

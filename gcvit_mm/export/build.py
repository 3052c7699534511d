"""The graph of a model, by its task and its heads."""

import copy
from typing import Any

from ..errors import UserError
from ..models.gcvit import GCViT
from .detectors import detector
from .graph import Classifier, Features, ImageModel, Labeller, Pyramid, Segmenter


def build_graph(
    model: Any, task: str, features: bool, argmax: bool, size: tuple[int, int] | None
) -> ImageModel:
    """Prepare a model in evaluation mode for export.

    ``features`` exports only the backbone, with the neck for a detector; ``argmax`` returns classes
    instead of logits, for a segmenter. Without ``size``, images may have any size.
    """
    if not isinstance(model.backbone, GCViT):
        kind = type(model.backbone).__name__
        raise UserError(f'the backbone is {kind}: only models with GCViT can be exported')
    if argmax and (task != 'segmentation' or features):
        raise UserError('--argmax is for segmentation models without --what features')
    if features:
        return (Pyramid if task == 'detection' else Features)(model, size)
    if task == 'classification':
        _check_classifier(model)
        return Classifier(model, size)
    if task == 'segmentation':
        _check_segmenter(model)
        # The file does not tile images. The model of the caller keeps its mode.
        model = copy.copy(model)
        model.test_cfg = copy.copy(model.test_cfg)
        model.test_cfg['mode'] = 'whole'
        return (Labeller if argmax else Segmenter)(model, size)
    return detector(model, size)


def _check_classifier(model: Any) -> None:
    from mmpretrain.models import ClsHead, ImageClassifier, MultiLabelClsHead

    head = model.head
    own = isinstance(head, ClsHead) and not isinstance(head, MultiLabelClsHead)
    if not isinstance(model, ImageClassifier) or not own:
        raise UserError(
            f'{type(model).__name__} with {type(head).__name__} cannot be exported: use a '
            'classifier whose head returns one score per class, or pass --what features'
        )


def _check_segmenter(model: Any) -> None:
    from mmdet.models import MSDeformAttnPixelDecoder
    from mmseg.models import EncoderDecoder, Mask2FormerHead
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head = model.decode_head
    kind = Mask2FormerHead if isinstance(head, Mask2FormerHead) else BaseDecodeHead
    # Heads that override prediction do more than return logits.
    usual = isinstance(head, kind) and all(
        getattr(type(head), name, None) is getattr(kind, name, None)
        for name in ('predict', 'predict_by_feat')
    )
    if isinstance(head, Mask2FormerHead):
        usual &= type(head.pixel_decoder) is MSDeformAttnPixelDecoder
    if not isinstance(model, EncoderDecoder) or not usual:
        raise UserError(
            f'{type(model).__name__} with {type(head).__name__} cannot be exported: use a '
            'segmenter whose head returns logits per pixel, such as UPerHead, or --what features'
        )
    if (model.data_preprocessor.test_cfg or {}).get('size'):
        raise UserError(
            'data_preprocessor.test_cfg pads images to a fixed size, which cannot be exported: '
            'remove it, as GC ViT takes images of any size'
        )

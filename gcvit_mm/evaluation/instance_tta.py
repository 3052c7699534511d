"""Test-time augmentation of detectors with masks, which mmdet does not support."""

from typing import Any

import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from ..errors import UserError

# The axes of mask predictions that a flip reverses.
AXES = {None: [], 'horizontal': [3], 'vertical': [2], 'diagonal': [2, 3]}


@MODELS.register_module()
class InstanceTTAModel(BaseTTAModel):
    """Runs Mask R-CNN or Cascade Mask R-CNN on several views of each image: sizes and flips.

    Boxes of all views are mapped to the original image and merged by the NMS of the detector
    (``model.test_cfg.rcnn``). The mask heads then predict the masks of the merged boxes in each
    view; their probabilities are flipped back and averaged. detectron2 and mmdet 2 use this method.

    Args:
        module: The detector, or its config.

    Raises:
        UserError: The detector is not a Mask R-CNN or Cascade Mask R-CNN.
    """

    module: Any

    def __init__(self, module: dict | nn.Module) -> None:
        super().__init__(module)
        from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

        head: Any = getattr(self.module, 'roi_head', None)
        # Subclasses are refused, because they score or refine masks differently.
        if type(head) not in (StandardRoIHead, CascadeRoIHead) or not head.with_mask:
            raise UserError(
                'tta_model: InstanceTTAModel is for Mask R-CNN and Cascade Mask R-CNN, not for '
                f"{type(self.module).__name__}: use mmdet's DetTTAModel for detectors without masks"
            )

    def test_step(self, data: dict) -> list[BaseDataElement]:
        """Detect the objects of a batch.

        Args:
            data: ``inputs`` and ``data_samples``, each a list over the views of lists over the
                images, as returned by mmcv's ``TestTimeAug``.

        Returns:
            A data sample per image, with boxes and masks on the original image.
        """
        views = [
            self._extract(inputs, samples)
            for inputs, samples in zip(data['inputs'], data['data_samples'], strict=True)
        ]
        predictions = [self._detect(*view) for view in views]
        merged = self.merge_preds(list(zip(*predictions, strict=True)))
        masks = [self._mask_probabilities(*view, merged) for view in views]
        samples = views[0][1]
        self._paste([torch.stack(m).mean(0) for m in zip(*masks, strict=True)], merged, samples)
        return self.module.add_pred_to_datasample(samples, merged)

    def merge_preds(self, data_samples_list: list) -> list[InstanceData]:
        """Merge the boxes of the views of each image by NMS, on the original image."""
        return [self._merge(InstanceData.cat(list(views))) for views in data_samples_list]

    def _merge(self, instances: InstanceData) -> InstanceData:
        from mmcv.ops import batched_nms

        if not len(instances):
            return instances
        limits = self.module.roi_head.test_cfg
        boxes, kept = batched_nms(instances.bboxes, instances.scores, instances.labels, limits.nms)
        merged = instances[kept]
        merged.bboxes, merged.scores = boxes[:, :4], boxes[:, 4]
        return merged[: limits.max_per_img] if limits.max_per_img > 0 else merged

    def _extract(self, inputs: Any, samples: list) -> tuple[tuple[Tensor, ...], list]:
        data = self.module.data_preprocessor(dict(inputs=inputs, data_samples=samples), False)
        return self.module.extract_feat(data['inputs']), data['data_samples']

    def _detect(self, maps: tuple[Tensor, ...], samples: list) -> list[InstanceData]:
        """Predict the boxes of a view, mapped to the original images."""
        from mmdet.structures.bbox import bbox_mapping_back

        head = self.module.roi_head
        proposals = self.module.rpn_head.predict(maps, samples, rescale=False)
        metas = [sample.metainfo for sample in samples]
        predictions = head.predict_bbox(maps, metas, proposals, rcnn_test_cfg=head.test_cfg)
        for instances, sample in zip(predictions, samples, strict=True):
            instances.bboxes = bbox_mapping_back(instances.bboxes, *_geometry(sample))
        return predictions

    def _mask_probabilities(
        self, maps: tuple[Tensor, ...], samples: list, merged: list[InstanceData]
    ) -> list[Tensor]:
        """The mask probabilities in the boxes of each image without flip, (n, classes, h, w)."""
        from mmdet.structures.bbox import bbox2roi, bbox_mapping

        head: Any = self.module.roi_head
        images = list(zip(merged, samples, strict=True))
        rois = bbox2roi([bbox_mapping(i.bboxes, *_geometry(sample)) for i, sample in images])
        if isinstance(head.mask_head, nn.ModuleList):  # a cascade
            results = [head._mask_forward(i, maps, rois) for i in range(head.num_stages)]
        else:
            results = [head._mask_forward(maps, rois)]
        mean = torch.stack([result['mask_preds'].sigmoid() for result in results]).mean(0)
        masks = mean.split([len(instances) for instances in merged])
        flips = [sample.get('flip_direction') for sample in samples]
        return [mask.flip(AXES[flip]) for mask, flip in zip(masks, flips, strict=True)]

    def _paste(self, masks: list[Tensor], merged: list[InstanceData], samples: list) -> None:
        """Set ``masks`` of the instances of each image, (n, H, W) in the original image."""
        head: Any = self.module.roi_head
        last: Any = head.mask_head
        if isinstance(last, nn.ModuleList):
            last = last[-1]
        metas = [dict(ori_shape=s.ori_shape, scale_factor=(1.0, 1.0)) for s in samples]
        last.predict_by_feat(masks, merged, metas, head.test_cfg, rescale=True, activate_map=True)


def _geometry(sample: BaseDataElement) -> tuple:
    """The arguments of mmdet's ``bbox_mapping`` and ``bbox_mapping_back`` for a view."""
    # mmcv sets the direction to None for a view without flip.
    direction = sample.get('flip_direction')
    return sample.img_shape, tuple(sample.scale_factor) * 2, direction is not None, direction

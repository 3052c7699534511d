"""Test-time augmentation of segmenters whose head has one channel."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from mmengine.registry import MODELS
from mmseg.models import SegTTAModel


@MODELS.register_module()
class OneChannelTTAModel(SegTTAModel):
    """mmseg's ``SegTTAModel``, which takes the sigmoid of probabilities as if they were logits."""

    def merge_preds(self, data_samples_list: Sequence[Sequence[Any]]) -> list[Any]:
        """Average the probabilities of all views, and apply the threshold."""
        for sample in chain(*data_samples_list):
            sample.seg_logits.data = sample.seg_logits.data.logit()
        return super().merge_preds(data_samples_list)

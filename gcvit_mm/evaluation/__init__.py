"""Metrics and test-time augmentation that OpenMMLab lacks; importing them registers them."""

from .classification_csv import ClassificationCSV
from .faster_coco_metric import coco_metric
from .instance_tta import InstanceTTAModel

__all__ = ['ClassificationCSV', 'InstanceTTAModel', 'coco_metric']

"""What stands in for onedl-mmdetection's ``FasterCocoMetric`` where mmdet is OpenMMLab's."""

from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS


# mmdet's registry is asked before this one, so its own metric of this name goes first.
@METRICS.register_module(name='FasterCocoMetric')
def coco_metric(**settings: Any) -> BaseMetric:
    """Build mmdet's ``CocoMetric``, which gives the same figures in more time."""
    print_log('this mmdet has no FasterCocoMetric: CocoMetric evaluates', logger='current')
    return METRICS.build(dict(type='mmdet.CocoMetric', **settings))

"""``mask_rcnn_gcvit_tiny.py`` for boxes alone."""

_base_ = './mask_rcnn_gcvit_tiny.py'

model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))

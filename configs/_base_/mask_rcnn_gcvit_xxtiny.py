"""A light Mask R-CNN on GC ViT-XXT, for data sets of some hundred images.

Windows of 8, 8, 16 and 8 tokens need no padding if the sides of the images are multiples of 256.
"""

_base_ = './mask_rcnn_gcvit_tiny.py'

model = dict(
    backbone=dict(
        arch='xxtiny', window_size=(8, 8, 16, 8), init_cfg=dict(checkpoint='gcvit://xxtiny')
    ),
    neck=dict(out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=512),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(in_channels=128, conv_out_channels=128),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=128))),
)

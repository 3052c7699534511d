"""A light RetinaNet on the last three feature maps of GC ViT-XXT."""

_base_ = './retinanet_gcvit_tiny.py'

model = dict(
    backbone=dict(
        arch='xxtiny', window_size=(8, 8, 16, 8), init_cfg=dict(checkpoint='gcvit://xxtiny')
    ),
    neck=dict(out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128),
)

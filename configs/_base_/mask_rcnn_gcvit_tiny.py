"""mmdet's Mask R-CNN on GC ViT-T with windows of 24, as in the paper's detectors."""

_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='tiny',
        window_size=24,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

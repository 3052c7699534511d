"""mmdet's RetinaNet on the last three feature maps of GC ViT-T with windows of 24."""

_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='tiny',
        window_size=24,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny'),
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)

"""A light RetinaNet on the last three feature maps of the nano GC ViT."""

_base_ = ['./retinanet_gcvit_tiny.py', './nano_arch.py']

model = dict(
    backbone=dict(
        _delete_=True, type='GCViT', arch=_base_.nano_arch, window_size=8, out_indices=(1, 2, 3)
    ),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2),
)

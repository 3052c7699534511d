"""A light UPerNet on GC ViT-XXT, for data sets of some hundred images."""

_base_ = './upernet_gcvit_tiny.py'

norm = dict(type='BN')
model = dict(
    backbone=dict(
        arch='xxtiny',
        window_size=(8, 8, 16, 8),
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='gcvit://xxtiny'),
    ),
    decode_head=dict(channels=128, norm_cfg=norm),
    auxiliary_head=dict(channels=64, norm_cfg=norm),
)

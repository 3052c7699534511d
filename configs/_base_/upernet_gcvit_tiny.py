"""mmseg's UPerNet for ADE20K on GC ViT-T; windows and drop path rate are ours.

Windows of 16, 16, 32 and 16 tokens need no padding for a crop of 512 pixels.
"""

_base_ = 'mmseg::_base_/models/upernet_r50.py'

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='tiny',
        window_size=(16, 16, 32, 16),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=150),
    auxiliary_head=dict(in_channels=256, num_classes=150),
)

"""UPerNet with GC ViT-S on ADE20K, Swin's recipe: the paper's code was never published.

Command: ``tools/dist_train.sh configs/upernet_gcvit_small_ade20k.py 8``
Needs: ADE20K under ``data/ade/ADEChallengeData2016``, the ImageNet weights; 16 images per step.
Paper: mIoU 48.3 on the validation images (not measured here).
Windows and drop path rate are ours; the paper gives none.
"""

_base_ = './upernet_gcvit_tiny_ade20k.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='gcvit://small'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)

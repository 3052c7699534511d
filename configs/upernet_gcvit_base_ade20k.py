"""UPerNet with GC ViT-B on ADE20K, Swin's recipe: the paper's code was never published.

Command: ``tools/dist_train.sh configs/upernet_gcvit_base_ade20k.py 8``
Needs: ADE20K under ``data/ade/ADEChallengeData2016``, the ImageNet weights; 16 images per step.
Paper: mIoU 49.2 on the validation images (not measured here).
Windows and drop path rate are ours; the paper gives none.
"""

_base_ = './upernet_gcvit_tiny_ade20k.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='gcvit://base'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)

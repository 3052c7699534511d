"""Mask2Former with GC ViT-B on ADE20K, the recipe of the tiny variant.

Command: ``tools/dist_train.sh configs/mask2former_gcvit_base_ade20k.py 8``
Needs: ADE20K under ``data/ade/ADEChallengeData2016``, the ImageNet weights; 16 images per step.
Paper: no figure; windows and drop path rate are ours.
"""

_base_ = './mask2former_gcvit_tiny_ade20k.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='gcvit://base'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)

"""Mask R-CNN with GC ViT-B on COCO, the recipe of the tiny variant.

Command: ``tools/dist_train.sh configs/mask_rcnn_gcvit_base_coco.py 8``
Needs: COCO 2017 under ``data/coco``, the ImageNet weights; 16 images per step.
Paper: no figure.
The drop path rate is ours; the paper gives none.
"""

_base_ = './mask_rcnn_gcvit_tiny_coco.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='gcvit://base'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

"""Cascade Mask R-CNN with GC ViT-S on COCO, the paper's 3x multi-scale recipe.

Command: ``tools/dist_train.sh configs/cascade_mask_rcnn_gcvit_small_coco.py 8``
Needs: COCO 2017 under ``data/coco``, the ImageNet weights; 16 images per step.
Paper: box AP 52.4, mask AP 45.4 on val2017 (not measured here).
The drop path rate is ours; the paper gives none.
"""

_base_ = './cascade_mask_rcnn_gcvit_tiny_coco.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='gcvit://small'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

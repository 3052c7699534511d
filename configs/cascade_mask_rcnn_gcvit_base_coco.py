"""Cascade Mask R-CNN with GC ViT-B on COCO, the paper's 3x multi-scale recipe.

Command: ``tools/dist_train.sh configs/cascade_mask_rcnn_gcvit_base_coco.py 8``
Needs: COCO 2017 under ``data/coco``, the ImageNet weights; 16 images per step.
Paper: box AP 52.9, mask AP 45.8 on val2017 (not measured here).
The drop path rate is ours; the paper gives none.
"""

_base_ = './cascade_mask_rcnn_gcvit_tiny_coco.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='gcvit://base'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

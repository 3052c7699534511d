"""Mask R-CNN with GC ViT-XXT on COCO, the recipe of the tiny variant.

Command: ``tools/dist_train.sh configs/mask_rcnn_gcvit_xxtiny_coco.py 8``
Needs: COCO 2017 under ``data/coco``, the ImageNet weights; 16 images per step.
Paper: no figure.
"""

_base_ = './mask_rcnn_gcvit_tiny_coco.py'

model = dict(
    backbone=dict(
        arch='xxtiny',
        init_cfg=dict(checkpoint='gcvit://xxtiny'),
    )
)

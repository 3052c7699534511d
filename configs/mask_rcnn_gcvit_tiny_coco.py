"""Mask R-CNN with GC ViT-T on COCO, the paper's 3x multi-scale recipe.

Command: ``tools/dist_train.sh configs/mask_rcnn_gcvit_tiny_coco.py 8``
Needs: COCO 2017 under ``data/coco``, the ImageNet weights; 16 images per step.
Paper: box AP 47.9, mask AP 43.2 on val2017 (not measured here).
"""

_base_ = [
    './_base_/mask_rcnn_gcvit_tiny.py',
    './_base_/coco_instance_multiscale.py',
    './_base_/adamw.py',
    './_base_/schedule_3x.py',
    './_base_/default_runtime.py',
]

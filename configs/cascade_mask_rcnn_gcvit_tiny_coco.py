"""Cascade Mask R-CNN with GC ViT-T on COCO, the paper's 3x multi-scale recipe.

Command: ``tools/dist_train.sh configs/cascade_mask_rcnn_gcvit_tiny_coco.py 8``
Needs: COCO 2017 under ``data/coco``, the ImageNet weights; 16 images per step.
Paper: box AP 51.6, mask AP 44.6 on val2017 (not measured here).
"""

_base_ = [
    './_base_/cascade_mask_rcnn_gcvit_tiny.py',
    './_base_/coco_instance_multiscale.py',
    './_base_/adamw.py',
    './_base_/schedule_3x.py',
    './_base_/default_runtime.py',
]

"""Mask R-CNN with GC ViT-T on COCO in 12 epochs, with multi-scale augmentation.

Command: ``tools/dist_train.sh configs/mask_rcnn_gcvit_tiny_1x_coco.py 8``
Needs: a third of the 3x schedule.
Paper: no figure.
"""

_base_ = [
    './_base_/mask_rcnn_gcvit_tiny.py',
    './_base_/coco_instance_multiscale.py',
    './_base_/adamw.py',
    './_base_/schedule_1x.py',
    './_base_/default_runtime.py',
]

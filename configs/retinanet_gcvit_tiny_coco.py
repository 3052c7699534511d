"""RetinaNet with GC ViT-T on COCO in 12 epochs, with multi-scale augmentation.

Command: ``tools/dist_train.sh configs/retinanet_gcvit_tiny_coco.py 8``
Needs: COCO 2017 under ``data/coco``, the ImageNet weights; 16 images per step.
Paper: no figure; the schedule is ours.
"""

_base_ = [
    './_base_/retinanet_gcvit_tiny.py',
    './_base_/coco_detection_multiscale.py',
    './_base_/adamw.py',
    './_base_/schedule_1x.py',
    './_base_/default_runtime.py',
]

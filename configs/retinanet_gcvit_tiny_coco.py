"""RetinaNet with GC ViT-T on COCO in 12 epochs, with multi-scale augmentation.

Command: ``tools/dist_train.sh configs/retinanet_gcvit_tiny_coco.py 8``
Takes: COCO 2017 under ``data/coco``, the ImageNet weights; 16 images a step.
Paper: no figure; the schedule is ours.
"""

_base_ = [
    './_base_/retinanet_gcvit_tiny.py',
    './_base_/coco_detection_multiscale.py',
    './_base_/adamw.py',
    './_base_/default_runtime.py',
]

train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]

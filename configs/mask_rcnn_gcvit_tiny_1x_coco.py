"""Mask R-CNN with GC ViT-T on COCO in 12 epochs, with multi-scale augmentation.

Command: ``tools/dist_train.sh configs/mask_rcnn_gcvit_tiny_1x_coco.py 8``
Takes: a third of the 3x schedule.
Paper: no figure.
"""

_base_ = './mask_rcnn_gcvit_tiny_coco.py'

train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]

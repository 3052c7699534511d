"""UPerNet with GC ViT-T on ADE20K, Swin's recipe: the paper's code was never published.

Command: ``tools/dist_train.sh configs/upernet_gcvit_tiny_ade20k.py 8``
Needs: ADE20K under ``data/ade/ADEChallengeData2016``, the ImageNet weights; 16 images per step.
Paper: mIoU 47.0 on the validation images (not measured here).
Windows and drop path rate are ours; the paper gives none.
"""

_base_ = [
    './_base_/upernet_gcvit_tiny.py',
    './_base_/ade20k.py',
    './_base_/adamw.py',
    './_base_/schedule_160k.py',
    './_base_/segmentation_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=6e-5, weight_decay=0.01))

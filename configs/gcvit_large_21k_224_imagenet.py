"""GC ViT-L pre-trained on ImageNet-21k, fine-tuned on ImageNet-1k at 224 pixels.

Command: ``tools/dist_train.sh configs/gcvit_large_21k_224_imagenet.py 8 --amp``
Needs: ImageNet-1k under ``data/imagenet``, the ImageNet-21k weights; 128 images per process.
Paper: top-1 86.6 (not measured here).
The fine-tuning schedule is ours; the official one is not published.
"""

_base_ = [
    './_base_/gcvit_tiny_classifier.py',
    './_base_/imagenet.py',
    './_base_/adamw_310e.py',
    './_base_/classification_runtime.py',
]

model = dict(
    backbone=dict(
        arch='large', init_cfg=dict(type='Pretrained', checkpoint='gcvit://large_21k_224')
    ),
    head=dict(in_channels=1536),
)
optim_wrapper = dict(optimizer=dict(lr=8e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=8e-7,
        by_epoch=True,
        begin=5,
        end=30,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(enable=False, base_batch_size=1024)

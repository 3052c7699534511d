"""Pre-training on images without labels: random crops, flips, AdamW with a cosine schedule.

Contains all but the model, the data and the length; tools/pretrain.py writes these.
"""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    './register.py',
    './hooks.py',
    './adamw.py',
]

custom_imports = dict(imports=['gcvit_mm.register', 'gcvit_mm.pretraining'])
default_hooks = _base_.gcvit_hooks
data_preprocessor = dict(
    type='ImgDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
)
train_pipeline = [
    dict(type='LoadWholeImage'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.35, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', with_label=False, pipeline=train_pipeline),
)
train_cfg = dict(type='ExactEpochBasedTrainLoop')
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(enable=False, base_batch_size=64)

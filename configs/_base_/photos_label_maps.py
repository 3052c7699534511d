"""Photos with label maps: random sizes and crops, flipped left to right, with colour jitter.

Contains all but the model and your data. ``crop`` is the size of the training's crops.
"""

_base_ = ['./small_semantic.py', './adamw.py', './epoch_loop.py', './segmentation_runtime.py']

train_pipeline = [
    dict(type='LoadWholeImage'),
    dict(type='LoadWholeMap'),
    dict(type='RandomResize', scale=(512, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(256, 256), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadWholeImage'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='LoadWholeMap'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    sampler=dict(type='DefaultSampler'),
    drop_last=True,  # batch norm of pooled maps needs two images
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Test-time augmentation: three sizes around that of the test, each with and without a flip.
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (384, 512, 640)
]

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
default_hooks = dict(
    checkpoint=dict(by_epoch=True, interval=1), logger=dict(log_metric_by_epoch=True)
)
log_processor = dict(by_epoch=True)

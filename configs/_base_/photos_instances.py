"""Photos with instances in COCO format: resized, flipped left to right, with colour jitter.

Contains all but the model and your data. ``scale`` in both pipelines is the largest size of an
image. ``large_scale_jitter`` may replace the resizing of the training (Ghiasi et al., 2021).
"""

_base_ = ['./small_instance.py', './adamw.py', './epoch_loop.py', './default_runtime.py']

train_pipeline = [
    dict(type='LoadWholeImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(640, 640), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
large_scale_jitter = [
    dict(type='RandomResize', scale=(640, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(640, 640), allow_negative_crop=True),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale=(640, 640), keep_ratio=True)
train_dataloader = dict(batch_size=2, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Test-time augmentation: left to right at the size of the training.
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(640, 640), keep_ratio=True)]
tta_pipeline[1].transforms[1] = [
    dict(type='RandomFlip', prob=0.0),
    dict(type='RandomFlip', prob=1.0),
]

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))

"""The demo: a small Mask R-CNN from scratch on generated shapes, on a CPU.

Command: ``make demo``, or ``tools/make_shapes.py data/shapes`` and then
``tools/train.py configs/mask_rcnn_gcvit_nano_shapes.py``
Needs: 7 minutes on two CPU cores, 3 GB of memory.
Result: box AP50 0.92, mask AP50 0.91 on the 120 validation images (``docs/results.md``).
"""

_base_ = [
    './_base_/mask_rcnn_gcvit_nano.py',
    './_base_/small_instance.py',
    './_base_/adamw.py',
    './_base_/schedule_1x.py',
    './_base_/default_runtime.py',
]

data_root = 'data/shapes/'
metainfo = dict(
    classes=('disk', 'box', 'star'),
    palette=[(0, 230, 255), (255, 40, 220), (255, 220, 0)],
)

model = dict(
    neck=dict(num_outs=4),
    rpn_head=dict(anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        # Spreads objects of 8 to 64 pixels over the levels.
        bbox_roi_extractor=dict(finest_scale=14),
        bbox_head=dict(num_classes=3),
        mask_roi_extractor=dict(finest_scale=14),
        mask_head=dict(num_classes=3),
    ),
)

train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_training.json',
        data_prefix=dict(img='images/training/'),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_validation.json',
        data_prefix=dict(img='images/validation/'),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_validation.json')
test_evaluator = val_evaluator

epochs = 8
train_cfg = dict(max_epochs=epochs, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, T_max=epochs, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=20))
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)

"""DINO, 4 scales, with GC ViT-T as in NVIDIA's TAO toolkit, to evaluate and fine-tune its weights.

Command: ``tools/convert_checkpoint.py dino_gcvit_tiny0_ep12.pth dino.pth --task detection``, then
``tools/test.py dino.py dino.pth``
Needs: COCO 2017 under ``data/coco``, TAO's weights; 16 images per step in training.
TAO's resizing, fixed padding in tests, decoder and tied heads. Not measured on COCO here.
"""

_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    './_base_/register.py',
    './_base_/hooks.py',
]

custom_imports = dict(imports=['gcvit_mm.register', 'gcvit_mm.detectors'])
model = dict(
    type='TAODINO',
    data_preprocessor=dict(type='FixedPadPreprocessor'),
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='tiny',
        window_size=(7, 7, 14, 7),
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny'),
    ),
    neck=dict(in_channels=[128, 256, 512], bias=True),
    bbox_head=dict(loss_cls=dict(loss_weight=2.0)),
)

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[0] = dict(type='LoadWholeImage')
test_pipeline[:2] = [
    dict(type='LoadWholeImage'),
    dict(type='ResizeShorterSide', scale=(800, 1333)),
]
train_dataloader = dict(num_workers=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='FasterCocoMetric', proposal_nums=(1, 10, 100))
test_evaluator = val_evaluator
train_cfg = dict(type='ExactEpochBasedTrainLoop')
default_hooks = _base_.gcvit_hooks
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    optimizer=dict(fused=True),
    constructor='GroupedOptimWrapperConstructor',
    paramwise_cfg=dict(bypass_duplicate=True),  # the layers share their heads
)

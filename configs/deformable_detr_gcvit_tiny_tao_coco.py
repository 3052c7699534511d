"""Deformable DETR with GC ViT-T as in NVIDIA's TAO toolkit, to evaluate and fine-tune its weights.

Command: ``tools/convert_checkpoint.py dd_gcvit_tiny_ep50.pth ddetr.pth --task detection``, then
``tools/test.py ddetr.py ddetr.pth``
Needs: COCO 2017 under ``data/coco``, TAO's weights; 32 images per step in training.
TAO's resizing, fixed padding in tests and attention to it. Not measured on COCO here.
"""

_base_ = [
    'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    './_base_/register.py',
    './_base_/hooks.py',
]

custom_imports = dict(imports=['gcvit_mm.register', 'gcvit_mm.detectors'])
model = dict(
    type='TAODeformableDETR',
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
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(dropout=0.3), ffn_cfg=dict(ffn_drop=0.3))),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(dropout=0.3),
            cross_attn_cfg=dict(dropout=0.3),
            ffn_cfg=dict(ffn_drop=0.3),
        )
    ),
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
    optimizer=dict(lr=1e-4, fused=True),
    constructor='GroupedOptimWrapperConstructor',
)

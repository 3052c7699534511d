"""DINO, 4 scales, with GC ViT-L pre-trained on ImageNet-21k, on COCO; mmdet's 36-epoch recipe.

Command: ``tools/dist_train.sh configs/dino_gcvit_large_coco.py 8``
Needs: COCO 2017 under ``data/coco``, the ImageNet-21k weights; 16 images per step.
Paper: box AP 58.3 on val2017 (not measured here).
Windows (of the 384-pixel weights), drop path rate and schedule are ours; the paper gives none.
"""

_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-36e_coco.py',
    './_base_/register.py',
    './_base_/hooks.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='large',
        window_size=(12, 12, 24, 12),
        pretrain_size=384,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://large_21k_384'),
    ),
    neck=dict(in_channels=[384, 768, 1536]),
)

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[0] = dict(type='LoadWholeImage')
test_pipeline[0] = dict(type='LoadWholeImage')
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
)

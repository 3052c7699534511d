"""Mask2Former with GC ViT-T on ADE20K, mmseg's recipe for semantic segmentation.

Command: ``tools/dist_train.sh configs/mask2former_gcvit_tiny_ade20k.py 8``
Needs: ADE20K under ``data/ade/ADEChallengeData2016``, the ImageNet weights; 16 images per step.
Paper: no figure; windows and drop path rate are ours.
"""

_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    './_base_/hooks.py',
]

custom_imports = dict(imports=['gcvit_mm.register', 'mmdet.models'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch='tiny',
        window_size=(16, 16, 32, 16),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='gcvit://tiny'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[:2] = [dict(type='LoadWholeImage'), dict(type='LoadWholeMap')]
test_pipeline[0], test_pipeline[2] = train_pipeline[:2]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[0] = dict(type='LoadWholeImage')
tta_pipeline[1].transforms[2] = [dict(type='LoadWholeMap')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The longest matching key wins, so these must be longer than 'backbone'.
backbone_without_decay = dict(lr_mult=0.1, decay_mult=0.0)
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    optimizer=dict(fused=True),
    constructor='GroupedOptimWrapperConstructor',
    paramwise_cfg=dict(
        custom_keys={
            key: backbone_without_decay
            for key in (
                'backbone.norm',
                '.norm1.weight',
                '.norm1.bias',
                '.norm2.weight',
                '.norm2.bias',
                'relative_position_bias_table',
            )
        }
    ),
)
train_cfg = dict(type='ExactIterBasedTrainLoop')
env_cfg = dict(cudnn_benchmark=False)  # each image size of an evaluation would be tuned anew
default_hooks = _base_.gcvit_hooks

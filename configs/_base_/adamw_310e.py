"""The official ImageNet schedule: 310 epochs, 20 for warm-up, cosine to 5e-6, moving average."""

_base_ = './epoch_loop.py'

optim_wrapper = dict(
    type='GuardedOptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='GroupedOptimWrapperConstructor',
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-4, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6,
        by_epoch=True,
        begin=20,
        end=310,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=310)
custom_hooks = [dict(type='EMAHook', momentum=2e-4)]

"""What every classifier's config shares: registration, hooks, logging."""

_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['gcvit_mm.register'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3, save_best='accuracy/top1'),
    non_finite=dict(type='NonFiniteHook'),
)

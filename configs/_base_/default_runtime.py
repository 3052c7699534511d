"""What every config of ours shares: registration, hooks, logging."""

_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['gcvit_mm.register'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3),
    non_finite=dict(type='NonFiniteHook'),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)

"""Settings of every config: registration, hooks, logging."""

_base_ = ['mmdet::_base_/default_runtime.py', './register.py', './hooks.py']

default_hooks = _base_.gcvit_hooks
auto_scale_lr = dict(enable=False, base_batch_size=16)

"""Settings of every classifier config: registration, hooks, logging."""

_base_ = ['mmpretrain::_base_/default_runtime.py', './register.py', './hooks.py']

default_hooks = _base_.gcvit_hooks
default_hooks.checkpoint.save_best = 'accuracy/top1'

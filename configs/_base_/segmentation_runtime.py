"""Settings of every segmenter config: registration, hooks, logging; intervals are in iterations."""

_base_ = ['mmseg::_base_/default_runtime.py', './register.py', './hooks.py']

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
    **_base_.gcvit_hooks,
)
default_hooks['checkpoint'].update(by_epoch=False, interval=16000, save_best='mIoU')
env_cfg = dict(cudnn_benchmark=False)  # each image size of an evaluation would be tuned anew
auto_scale_lr = dict(enable=False, base_batch_size=16)

"""The paper's 3x schedule: 2500 iterations of warm-up, 36 epochs, steps at 27 and 33."""

_base_ = './epoch_loop.py'

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]

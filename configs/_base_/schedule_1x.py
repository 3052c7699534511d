"""The 1x schedule: 2500 iterations of warm-up, 12 epochs, steps at 8 and 11."""

_base_ = './epoch_loop.py'

train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]

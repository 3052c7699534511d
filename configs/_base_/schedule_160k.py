"""Swin's schedule for UPerNet on ADE20K: 160,000 iterations, 1500 of warm-up, then linear decay."""

_base_ = './iter_loop.py'

train_cfg = dict(max_iters=160000, val_interval=16000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]

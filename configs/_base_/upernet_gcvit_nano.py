"""A light UPerNet on the nano GC ViT, to train on a CPU without published weights."""

_base_ = ['./upernet_gcvit_tiny.py', './nano_arch.py']

norm = dict(type='BN')
model = dict(
    backbone=dict(_delete_=True, type='GCViT', arch=_base_.nano_arch, window_size=8),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, norm_cfg=norm),
    auxiliary_head=dict(in_channels=128, channels=64, norm_cfg=norm),
)

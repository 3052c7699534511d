"""A classifier on the nano GC ViT, to train on a CPU without published weights."""

_base_ = ['./gcvit_tiny_classifier.py', './nano_arch.py']

model = dict(
    backbone=dict(
        _delete_=True, type='GCViT', arch=_base_.nano_arch, window_size=7, out_indices=(3,)
    ),
    head=dict(in_channels=256),
    train_cfg=None,
)

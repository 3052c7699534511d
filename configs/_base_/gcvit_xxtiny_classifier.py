"""A classifier on GC ViT-XXT with the ImageNet weights."""

_base_ = './gcvit_tiny_classifier.py'

model = dict(
    backbone=dict(arch='xxtiny', init_cfg=dict(type='Pretrained', checkpoint='gcvit://xxtiny')),
    train_cfg=None,
)

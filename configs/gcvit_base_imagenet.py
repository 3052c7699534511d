"""GC ViT-B on ImageNet-1k, the official recipe.

Command: ``tools/dist_train.sh configs/gcvit_base_imagenet.py 8 --amp``
Needs: see ``gcvit_tiny_imagenet.py``.
Paper: top-1 85.0 (not measured here).
"""

_base_ = './gcvit_tiny_imagenet.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=1024))
optim_wrapper = dict(optimizer=dict(lr=1e-3))

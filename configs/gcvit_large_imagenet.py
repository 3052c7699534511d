"""GC ViT-L on ImageNet-1k, the official recipe.

Command: ``tools/dist_train.sh configs/gcvit_large_imagenet.py 8 --amp``
Needs: see ``gcvit_tiny_imagenet.py``.
Paper: top-1 85.7 (not measured here).
"""

_base_ = './gcvit_tiny_imagenet.py'

model = dict(backbone=dict(arch='large'), head=dict(in_channels=1536))
optim_wrapper = dict(optimizer=dict(lr=1e-3))

"""GC ViT-XXT on ImageNet-1k, the official recipe.

Command: ``tools/dist_train.sh configs/gcvit_xxtiny_imagenet.py 8 --amp``
Needs: see ``gcvit_tiny_imagenet.py``.
Paper: top-1 79.9 (not measured here).
"""

_base_ = './gcvit_tiny_imagenet.py'

model = dict(backbone=dict(arch='xxtiny'))

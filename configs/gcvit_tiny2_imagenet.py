"""GC ViT-T2 on ImageNet-1k, the official recipe.

Command: ``tools/dist_train.sh configs/gcvit_tiny2_imagenet.py 8 --amp``
Needs: see ``gcvit_tiny_imagenet.py``.
Paper: top-1 83.7 (not measured here).
"""

_base_ = './gcvit_tiny_imagenet.py'

model = dict(backbone=dict(arch='tiny2'))

# The official test crop of this variant is 7/8 of the shorter side.
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 256
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

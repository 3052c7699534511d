"""GC ViT-S on ImageNet-1k, the official recipe.

Command: ``tools/dist_train.sh configs/gcvit_small_imagenet.py 8 --amp``
Needs: see ``gcvit_tiny_imagenet.py``.
Paper: top-1 84.3 (not measured here).
"""

_base_ = './gcvit_tiny_imagenet.py'

model = dict(backbone=dict(arch='small'), head=dict(in_channels=768))
optim_wrapper = dict(optimizer=dict(lr=1e-3))

# The official test crop of this variant is 7/8 of the shorter side.
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 256
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

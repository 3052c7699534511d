"""GC ViT-T on ImageNet-1k, the official recipe.

Command: ``tools/dist_train.sh configs/gcvit_tiny_imagenet.py 8 --amp``
Official weights: convert them for ``tools/test.py`` with ``tools/convert_checkpoint.py``.
Needs: ImageNet-1k under ``data/imagenet``; 128 images per process. The official total batch size is
not published; we assume 4096 for the learning rate.
Paper: top-1 83.5 (not measured here).
"""

_base_ = [
    './_base_/gcvit_tiny_classifier.py',
    './_base_/imagenet.py',
    './_base_/adamw_310e.py',
    './_base_/classification_runtime.py',
]

auto_scale_lr = dict(enable=False, base_batch_size=4096)

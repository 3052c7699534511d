"""GC ViT-T on ImageNet-1k, the official recipe.

Command: ``tools/dist_train.sh configs/gcvit_tiny_imagenet.py 8 --amp``
Official weights: ``tools/convert_checkpoint.py`` makes a file for ``tools/test.py`` of them.
Takes: ImageNet-1k under ``data/imagenet``; 128 images a process. The official total batch is not
published: 4096, for which the learning rate is taken to be meant, is ours.
Paper: top-1 83.5 (not measured here).
"""

_base_ = [
    './_base_/gcvit_tiny_classifier.py',
    './_base_/imagenet.py',
    './_base_/adamw_310e.py',
    './_base_/classification_runtime.py',
]

auto_scale_lr = dict(enable=False, base_batch_size=4096)

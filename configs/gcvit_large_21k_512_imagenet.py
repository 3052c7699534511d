"""GC ViT-L pre-trained on ImageNet-21k, fine-tuned on ImageNet-1k at 512 pixels.

Command: ``tools/dist_train.sh configs/gcvit_large_21k_512_imagenet.py 8 --amp``
Needs: ImageNet-1k under ``data/imagenet``, the ImageNet-21k weights; 16 images per process.
Paper: top-1 87.6 (not measured here).
The fine-tuning schedule is ours; the official one is not published.
"""

_base_ = './gcvit_large_21k_224_imagenet.py'

model = dict(
    backbone=dict(
        window_size=(16, 16, 32, 16),
        pretrain_size=512,
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='gcvit://large_21k_512'),
    )
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 512
# The official test image of this variant is the whole image, squeezed into a square.
test_pipeline = _base_.test_pipeline
test_pipeline[1:3] = [
    dict(type='Resize', scale=(512, 512), backend='pillow', interpolation='bicubic')
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=128)

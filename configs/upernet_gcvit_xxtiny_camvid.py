"""Your own label maps, by example: street scenes of CamVid, 480 x 360 pixels, 11 classes.

Copy this file and change the marked parts. The label maps are in ADE20K's format: PNGs of class
numbers, 0 for ignored pixels.

Command: ``CAMVID_ROOT=path/to/camvid tools/train.py configs/upernet_gcvit_xxtiny_camvid.py``
Needs: the ImageNet weights, or from scratch with ``--cfg-options model.backbone.init_cfg=None``.
"""

_base_ = [
    './_base_/upernet_gcvit_xxtiny.py',
    './_base_/small_semantic.py',
    './_base_/adamw.py',
    './_base_/schedule_160k.py',
    './_base_/segmentation_runtime.py',
]

# Your data: the folder, the class names and colours, whether 0 is ignored and classes count from 1.
dataset = dict(
    data_root='{{$CAMVID_ROOT:data/camvid}}',
    metainfo=dict(
        classes=(
            'Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree',
            'SignSymbol', 'Fence', 'Car', 'Pedestrian', 'Bicyclist',
        ),
        palette=[
            [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [0, 0, 192],
            [128, 128, 0], [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
        ],
    ),
    reduce_zero_label=True,
)  # fmt: skip

# Both heads need the number of your classes.
crop = (256, 256)
model = dict(
    data_preprocessor=dict(size=crop),
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
)

train_pipeline = [
    dict(type='LoadWholeImage'),
    dict(type='LoadWholeMap'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(
    dataset=dict(
        **dataset, data_prefix=dict(img_path='images/test', seg_map_path='annotations/test')
    )
)

iterations = 4000
train_cfg = dict(max_iters=iterations, val_interval=500)
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=100, end=iterations),
]
default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=25))
auto_scale_lr = dict(base_batch_size=4)

"""COCO 2017 instances under ``data/coco``, with DETR's multi-scale augmentation.

Batches of 2 per process: 16 with 8 GPUs, the paper's total. A fast evaluator has the
COCO API's limits of 1, 10 and 100 detections per image. To evaluate with the COCO API itself, set
``val_evaluator.type=CocoMetric test_evaluator.type=CocoMetric``.
"""

_base_ = 'mmdet::_base_/datasets/coco_instance.py'

load_image = dict(type='LoadWholeImage')
short_sides = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
resize = dict(
    type='RandomChoiceResize', scales=[(1333, side) for side in short_sides], keep_ratio=True
)
train_pipeline = [
    load_image,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [resize],
            [
                dict(
                    type='RandomChoiceResize',
                    scales=[(1333, side) for side in (400, 500, 600)],
                    keep_ratio=True,
                ),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                resize,
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    load_image,
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(num_workers=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='FasterCocoMetric', proposal_nums=(1, 10, 100))
test_evaluator = val_evaluator

# Test-time augmentation: three sizes, each with and without a flip.
tta_model = dict(type='InstanceTTAModel')
tta_pipeline = [
    load_image,
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=scale, keep_ratio=True)
                for scale in [(1066, 640), (1333, 800), (1600, 960)]
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
            [dict(type='PackDetInputs')],
        ],
    ),
]

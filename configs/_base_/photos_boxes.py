"""Photos with boxes in COCO format, as ``photos_instances.py``."""

_base_ = './photos_instances.py'

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[1].with_mask = False
test_pipeline[2].with_mask = False
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator

tta_model = dict(
    type='DetTTAModel',
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[2][0].with_mask = False

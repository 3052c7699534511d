"""Your own data, by example: nuclei of the 2018 Data Science Bowl, 256 x 256 pixels, one class.

Copy this file and change the marked parts. The annotations are in COCO format.

Command: ``NUCLEI_ROOT=path/to/nuclei256 tools/train.py configs/mask_rcnn_gcvit_xxtiny_nuclei.py``
Needs: the ImageNet weights, or from scratch with
``--cfg-options model.backbone.init_cfg=None``; 20 minutes on two CPU cores, 3 GB of memory.
Result: from scratch, box AP 0.49, mask AP 0.50 on the validation images (``docs/results.md``).
"""

_base_ = [
    './_base_/mask_rcnn_gcvit_xxtiny.py',
    './_base_/small_instance.py',
    './_base_/adamw.py',
    './_base_/schedule_1x.py',
    './_base_/default_runtime.py',
]

# Your data: the folder and the class names.
data_root = '{{$NUCLEI_ROOT:data/nuclei256}}'
metainfo = dict(classes=('nucleus',))

# Both heads need the number of your classes. Nuclei are small: anchors of 8 pixels and up.
model = dict(
    neck=dict(num_outs=4),
    rpn_head=dict(anchor_generator=dict(scales=[2], strides=[4, 8, 16, 32])),
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
)

train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='instances_train.json',
        data_prefix=dict(img='train/'),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='instances_val.json',
        data_prefix=dict(img='val/'),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/instances_val.json')
test_evaluator = val_evaluator

epochs = 8
train_cfg = dict(max_epochs=epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=2)

"""GC ViT-T with global average pooling and a linear head, as in the official classifiers."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='GCViT', arch='tiny', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(augments=dict(type='CutMix', alpha=1.0)),
)

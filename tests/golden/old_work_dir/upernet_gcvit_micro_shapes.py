auto_scale_lr = dict(base_batch_size=8, enable=False)
custom_hooks = [
    dict(type='RunSummaryHook'),
    dict(type='DataTimeHook'),
    dict(type='ProgressBarHook'),
    dict(exact=False, type='CheckpointGuardHook'),
    dict(type='PreemptionHook'),
]
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'gcvit_mm',
        'gcvit_mm.datasets',
        'gcvit_mm.engine',
    ],
)
data_preprocessor = dict(
    _scope_='mmseg',
    bgr_to_rgb=True,
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    pad_val=0,
    seg_pad_val=255,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    type='SegDataPreProcessor',
)
dataset = dict(
    data_root='data/shapes',
    metainfo=dict(
        classes=(
            'background',
            'disk',
            'box',
            'star',
        ),
        palette=[
            [
                60,
                60,
                60,
            ],
            [
                0,
                230,
                255,
            ],
            [
                255,
                40,
                220,
            ],
            [
                255,
                220,
                0,
            ],
        ],
    ),
)
default_hooks = dict(
    checkpoint=dict(
        by_epoch=False, interval=3, max_keep_ckpts=3, save_best='mIoU', type='SafeCheckpointHook'
    ),
    logger=dict(interval=1, log_metric_by_epoch=False, type='LoggerHook'),
    non_finite=dict(type='NonFiniteHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='SegVisualizationHook'),
)
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
)
iterations = 800
launcher = 'none'
load_from = None
log_level = 'INFO'
log_processor = dict(by_epoch=False)
loss = dict(
    class_weight=[
        0.3,
        1.0,
        1.0,
        1.0,
    ]
)
micro = dict(
    depths=(
        1,
        2,
        1,
        1,
    ),
    dim=4,
    drop_path_rate=0.2,
    layer_scale=None,
    mlp_ratio=1,
    num_heads=(
        1,
        1,
        1,
        1,
    ),
)
model = dict(
    _scope_='mmseg',
    auxiliary_head=dict(
        align_corners=False,
        channels=4,
        concat_input=False,
        dropout_ratio=0.1,
        in_channels=16,
        in_index=2,
        loss_decode=dict(
            class_weight=[
                0.3,
                1.0,
                1.0,
                1.0,
            ],
            loss_weight=0.4,
            type='CrossEntropyLoss',
            use_sigmoid=False,
        ),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=4,
        num_convs=1,
        type='FCNHead',
    ),
    backbone=dict(
        arch=dict(
            depths=(
                1,
                2,
                1,
                1,
            ),
            dim=4,
            drop_path_rate=0.2,
            layer_scale=None,
            mlp_ratio=1,
            num_heads=(
                1,
                1,
                1,
                1,
            ),
        ),
        type='GCViT',
        window_size=4,
    ),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_val=0,
        seg_pad_val=255,
        size=(
            128,
            128,
        ),
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='SegDataPreProcessor',
    ),
    decode_head=dict(
        align_corners=False,
        channels=4,
        dropout_ratio=0.1,
        in_channels=[
            4,
            8,
            16,
            32,
        ],
        in_index=[
            0,
            1,
            2,
            3,
        ],
        loss_decode=dict(
            class_weight=[
                0.3,
                1.0,
                1.0,
                1.0,
            ],
            loss_weight=1.0,
            type='CrossEntropyLoss',
            use_sigmoid=False,
        ),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=4,
        pool_scales=(
            1,
            2,
            3,
            6,
        ),
        type='UPerHead',
    ),
    pretrained=None,
    test_cfg=dict(mode='whole'),
    train_cfg=dict(),
    type='EncoderDecoder',
)
nano_arch = dict(
    depths=(
        2,
        2,
        2,
        2,
    ),
    dim=32,
    drop_path_rate=0.0,
    layer_scale=None,
    mlp_ratio=3,
    num_heads=(
        1,
        2,
        4,
        8,
    ),
)
norm = dict(type='BN')
norm_cfg = dict(_scope_='mmseg', requires_grad=True, type='SyncBN')
optim_wrapper = dict(
    clip_grad=dict(max_norm=5.0),
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(
        betas=(
            0.9,
            0.999,
        ),
        fused=True,
        lr=0.001,
        type='AdamW',
        weight_decay=0.05,
    ),
    paramwise_cfg=dict(
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0)), norm_decay_mult=0.0
    ),
    type='GuardedOptimWrapper',
)
param_scheduler = [
    dict(begin=0, by_epoch=False, end=50, start_factor=0.01, type='LinearLR'),
    dict(begin=50, by_epoch=False, end=800, eta_min=1e-05, type='CosineAnnealingLR'),
]
randomness = dict(seed=0)
resume = False
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        data_root='data/shapes',
        metainfo=dict(
            classes=(
                'background',
                'disk',
                'box',
                'star',
            ),
            palette=[
                [
                    60,
                    60,
                    60,
                ],
                [
                    0,
                    230,
                    255,
                ],
                [
                    255,
                    40,
                    220,
                ],
                [
                    255,
                    220,
                    0,
                ],
            ],
        ),
        pipeline=[
            dict(type='LoadWholeImage'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        type='BaseSegDataset',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'),
    worker_init_fn=dict(type='init_worker'),
)
test_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ],
    type='IoUMetric',
)
test_pipeline = [
    dict(type='LoadWholeImage'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_cfg = dict(max_iters=6, type='ExactIterBasedTrainLoop', val_interval=6)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        data_root='data/shapes',
        metainfo=dict(
            classes=(
                'background',
                'disk',
                'box',
                'star',
            ),
            palette=[
                [
                    60,
                    60,
                    60,
                ],
                [
                    0,
                    230,
                    255,
                ],
                [
                    255,
                    40,
                    220,
                ],
                [
                    255,
                    220,
                    0,
                ],
            ],
        ),
        pipeline=[
            dict(type='LoadWholeImage'),
            dict(type='LoadAnnotations'),
            dict(
                direction=[
                    'horizontal',
                    'vertical',
                    'diagonal',
                ],
                prob=[
                    0.25,
                    0.25,
                    0.25,
                ],
                type='RandomFlip',
            ),
            dict(type='PackSegInputs'),
        ],
        type='BaseSegDataset',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='InfiniteSampler'),
    worker_init_fn=dict(type='init_worker'),
)
train_pipeline = [
    dict(type='LoadWholeImage'),
    dict(type='LoadAnnotations'),
    dict(
        direction=[
            'horizontal',
            'vertical',
            'diagonal',
        ],
        prob=[
            0.25,
            0.25,
            0.25,
        ],
        type='RandomFlip',
    ),
    dict(type='PackSegInputs'),
]
tta_model = dict(_scope_='mmseg', type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadWholeImage'),
    dict(
        transforms=[
            [
                dict(keep_ratio=True, scale_factor=0.75, type='Resize'),
                dict(keep_ratio=True, scale_factor=1.0, type='Resize'),
                dict(keep_ratio=True, scale_factor=1.25, type='Resize'),
            ],
            [
                dict(prob=0.0, type='RandomFlip'),
                dict(prob=1.0, type='RandomFlip'),
            ],
            [
                dict(type='LoadAnnotations'),
            ],
            [
                dict(type='PackSegInputs'),
            ],
        ],
        type='TestTimeAug',
    ),
]
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        data_root='data/shapes',
        metainfo=dict(
            classes=(
                'background',
                'disk',
                'box',
                'star',
            ),
            palette=[
                [
                    60,
                    60,
                    60,
                ],
                [
                    0,
                    230,
                    255,
                ],
                [
                    255,
                    40,
                    220,
                ],
                [
                    255,
                    220,
                    0,
                ],
            ],
        ),
        pipeline=[
            dict(type='LoadWholeImage'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        type='BaseSegDataset',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'),
    worker_init_fn=dict(type='init_worker'),
)
val_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ],
    type='IoUMetric',
)
vis_backends = [
    dict(_scope_='mmseg', type='LocalVisBackend'),
]
visualizer = dict(
    _scope_='mmseg',
    name='visualizer',
    type='SegLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ],
)
work_dir = 'work_dirs/old'

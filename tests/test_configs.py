"""The configs: each builds, and runs on the kind of data that it is for."""

import os
from pathlib import Path

import pytest
import torch
from command_line import ROOT, succeed
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

import gcvit_mm  # noqa: F401  (registers, and mmdet needs mmcv's operations)

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
needs_samples = pytest.mark.skipif(
    not SAMPLES, reason='GCVIT_MM_SAMPLES is unset: no real images here'
)


def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    return cfg


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_neck_takes_the_maps_of_the_backbone(config):
    with torch.device('meta'):
        model = MODELS.build(load(config.name).model)
    assert tuple(model.neck.in_channels) == model.backbone.out_channels
    strides = model.rpn_head.prior_generator.strides
    assert [stride[0] for stride in strides][:4] == list(model.backbone.out_strides)


@pytest.mark.parametrize(
    ('config', 'millions'),
    [
        ('mask_rcnn_gcvit_tiny_coco.py', 48),
        ('cascade_mask_rcnn_gcvit_tiny_coco.py', 85),
        ('cascade_mask_rcnn_gcvit_small_coco.py', 108),
        ('cascade_mask_rcnn_gcvit_base_coco.py', 146),
    ],
)
def test_detectors_have_the_published_number_of_parameters(config, millions):
    with torch.device('meta'):
        model = MODELS.build(load(config).model)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.02)


def test_the_coco_recipe_is_the_published_one():
    cfg = load('mask_rcnn_gcvit_tiny_coco.py')
    assert cfg.model.backbone.window_size == 24
    assert cfg.model.backbone.drop_path_rate == 0.2
    assert cfg.train_cfg.max_epochs == 36
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.end, list(steps.milestones)) == (2500, [27, 33])
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (1333, 800)


@needs_samples
def test_training_pipeline_of_coco_gives_scaled_photos_with_their_objects():
    dataset = load('mask_rcnn_gcvit_tiny_coco.py').train_dataloader.dataset
    dataset.update(
        data_root=f'{SAMPLES}/coco_small',
        ann_file='instances.json',
        data_prefix=dict(img='images/'),
    )
    dataset = DATASETS.build(dataset)
    assert len(dataset) == 48  # 6 of the 54 photos have no objects
    for i in range(0, len(dataset), 4):
        item = dataset[i]
        height, width = item['inputs'].shape[1:]
        assert 480 <= min(height, width) <= 800 or max(height, width) == 1333
        instances = item['data_samples'].gt_instances
        boxes = instances.bboxes.tensor
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert (boxes.amax(dim=0)[2:] <= boxes.new_tensor([width, height])).all()
        assert instances.masks.masks.shape == (len(boxes), height, width) if len(boxes) else True


MINI_COCO = [
    f'train_dataloader.dataset.data_root={SAMPLES}/coco_mini320',
    'train_dataloader.dataset.ann_file=instances_train2017.json',
    'train_dataloader.dataset.data_prefix.img=train2017/',
    'train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(160,128)]',
    'train_dataloader.dataset.pipeline.3.transforms.1.2.scales=[(160,128)]',
]


@needs_samples
@pytest.mark.parametrize(
    ('config', 'options'),
    [
        ('mask_rcnn_gcvit_xxtiny_coco.py', MINI_COCO),
        (
            'cascade_mask_rcnn_gcvit_tiny_coco.py',
            [*MINI_COCO, *(f'model.train_cfg.rcnn.{i}.sampler.num=32' for i in range(3))],
        ),
        (
            'mask_rcnn_gcvit_xxtiny_nuclei.py',
            [f'train_dataloader.dataset.data_root={SAMPLES}/nuclei256'],
        ),
    ],
)
def test_configs_for_real_data_train_on_it(config, options, tmp_path):
    output = succeed(
        'train.py', f'configs/{config}', '--work-dir', tmp_path, '--cfg-options', *options,
        'model.backbone.init_cfg=None', 'train_dataloader.dataset.indices=4',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        'train_cfg.max_epochs=1', 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None',
        'default_hooks.logger.interval=1',
    )  # fmt: skip
    assert 'Epoch(train) [1][2/2]' in output
    assert 'nan' not in output.split('This run:')[1]
    assert list(Path(tmp_path).glob('epoch_1.pth'))

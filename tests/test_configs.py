"""The configs: each builds, and trains and predicts on the kind of data that it is for."""

import os
from pathlib import Path

import pytest
import torch
from command_line import ROOT, succeed
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed

import gcvit_mm  # noqa: F401  (registers, and mmdet needs mmcv's operations)
from gcvit_mm.datasets.shapes import make_shapes
from gcvit_mm.engine.setup import HOOKS

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
NAMES = [path.stem for path in CONFIGS]
# The smallest; the others are slow because they are large.
QUICK = {
    'mask_rcnn_gcvit_nano_shapes',
    'mask_rcnn_gcvit_xxtiny_coco',
    'mask_rcnn_gcvit_xxtiny_nuclei',
    'upernet_gcvit_nano_shapes',
    'upernet_gcvit_xxtiny_camvid',
    'gcvit_xxtiny_imagenet',
}
SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
needs_samples = pytest.mark.skipif(
    not SAMPLES, reason='GCVIT_MM_SAMPLES is unset: no real images here'
)


def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    if 'data_preprocessor' in cfg:  # as the runner does
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg


def parameters(name: str) -> int:
    with torch.device('meta'):
        model = MODELS.build(load(name).model)
    return sum(p.numel() for p in model.parameters())


# --- What the files say -----------------------------------------------------------------------


def test_what_the_tools_add_to_other_configs_is_in_the_list_of_hooks():
    hooks = Config.fromfile(ROOT / 'configs/_base_/hooks.py').gcvit_hooks
    assert set(HOOKS) <= {hook.type for hook in hooks.values()}


@pytest.mark.parametrize('path', CONFIGS, ids=NAMES)
def test_no_setting_is_further_away_than_three_files(path):
    assert levels_of_bases(path) <= 3


def levels_of_bases(path: Path) -> int:
    own = [base for base in Config._get_base_files(str(path)) if '::' not in base]
    return max((1 + levels_of_bases(path.parent / base) for base in own), default=0)


@pytest.mark.parametrize('name', NAMES)
def test_what_follows_the_backbone_takes_its_maps(name):
    with torch.device('meta'):
        model = MODELS.build(load(name).model)
    channels, strides = model.backbone.out_channels, list(model.backbone.out_strides)
    for module, index in consumers(model):
        taken = module.in_channels
        expected = channels if index is None else [channels[i] for i in index]
        assert list(taken if isinstance(taken, list | tuple) else [taken]) == list(expected)
    if hasattr(model, 'rpn_head'):
        anchors = model.rpn_head.prior_generator.strides
        assert [stride[0] for stride in anchors][:4] == strides
    if hasattr(getattr(model, 'bbox_head', None), 'prior_generator'):
        anchors = model.bbox_head.prior_generator.strides
        assert [stride[0] for stride in anchors][: len(strides)] == strides
    if hasattr(getattr(model, 'decode_head', None), 'pixel_decoder'):
        assert model.decode_head.pixel_decoder.strides == strides


def consumers(model: torch.nn.Module):
    """The modules that take the backbone's maps, and which of them (None: all)."""
    if hasattr(model, 'decode_head'):
        head = model.decode_head
        pixel_decoder = getattr(head, 'pixel_decoder', None)
        if pixel_decoder is None:
            yield head, head.in_index
        else:
            assert [conv.conv.in_channels for conv in pixel_decoder.input_convs] == list(
                model.backbone.out_channels[:0:-1]
            )
        if model.with_auxiliary_head:
            yield model.auxiliary_head, [model.auxiliary_head.in_index]
    elif hasattr(model, 'rpn_head') or hasattr(model, 'bbox_head'):
        if hasattr(model.neck, 'in_channels'):
            yield model.neck, None
        else:
            convs = [conv.conv.in_channels for conv in model.neck.convs]
            assert convs == list(model.backbone.out_channels)
    else:
        yield model.head, None


@pytest.mark.parametrize(
    ('name', 'millions'),
    [
        ('mask_rcnn_gcvit_tiny_coco', 48),
        ('cascade_mask_rcnn_gcvit_tiny_coco', 85),
        ('cascade_mask_rcnn_gcvit_small_coco', 108),
        ('cascade_mask_rcnn_gcvit_base_coco', 146),
        ('upernet_gcvit_tiny_ade20k', 58),
        ('upernet_gcvit_small_ade20k', 84),
        ('upernet_gcvit_base_ade20k', 125),
    ],
)
def test_models_have_the_published_number_of_parameters(name, millions):
    assert parameters(name) == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize(
    ('arch', 'count'),
    {
        'xxtiny': 11_995_428,
        'xtiny': 19_981_294,
        'tiny': 28_221_974,
        'tiny2': 34_535_654,
        'small': 51_092_173,
        'small2': 68_615_197,
        'base': 90_320_836,
        'large': 202_075_570,
        'large_21k_224': 202_075_570,
    }.items(),
)
def test_classifiers_have_exactly_the_official_parameters(arch, count):
    assert parameters(f'gcvit_{arch}_imagenet') == count


def test_the_coco_recipe_is_the_published_one():
    cfg = load('mask_rcnn_gcvit_tiny_coco')
    assert cfg.model.backbone.window_size == 24
    assert cfg.model.backbone.drop_path_rate == 0.2
    assert cfg.train_cfg.max_epochs == 36
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.end, list(steps.milestones)) == (2500, [27, 33])
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (1333, 800)


def test_the_ade20k_recipe_is_the_one_of_swin():
    cfg = load('upernet_gcvit_tiny_ade20k')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.end, decay.end, decay.power, decay.eta_min) == (1500, 160000, 1.0, 0.0)
    assert cfg.train_cfg.max_iters == 160000
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.data_preprocessor.size == (512, 512)


@pytest.mark.parametrize('name', [n for n in NAMES if n.endswith('_imagenet')])
def test_the_imagenet_recipe_and_test_crop_are_the_official_ones(name):
    cfg = load(name)
    size = int(name.split('_')[3]) if '21k' in name else 224
    assert cfg.model.backbone.get('pretrain_size', 224) == size
    resize = cfg.test_dataloader.dataset.pipeline[1]
    if size == 224:
        crop = 256 if name.split('_')[1] in ('xtiny', 'tiny2', 'small', 'small2') else 224
        assert (resize.type, resize.scale) == ('ResizeEdge', crop)
        assert cfg.test_dataloader.dataset.pipeline[2].crop_size == 224
    else:
        assert (resize.type, resize.scale) == ('Resize', (size, size))
    if '21k' not in name:
        assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.clip_grad.max_norm) == (310, 5.0)
        assert cfg.custom_hooks[0].momentum == pytest.approx(1 - 0.9998)


def test_mask2former_decays_no_norm_and_slows_the_whole_backbone():
    cfg = load('mask2former_gcvit_tiny_ade20k')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    norms = [
        f'{module_name}.{parameter_name}'
        for module_name, module in model.named_modules()
        if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm)
        for parameter_name, _ in module.named_parameters()
    ]
    tables = [n for n, _ in model.named_parameters() if 'relative_position_bias_table' in n]
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    owners = {id(parameter): group for group in groups for parameter in group['params']}
    named = {name: owners[id(parameter)] for name, parameter in model.named_parameters()}
    assert {named[name]['weight_decay'] for name in norms + tables} == {0}
    assert {g['lr'] for n, g in named.items() if n.startswith('backbone.')} == {1e-5}
    assert {g['lr'] for n, g in named.items() if not n.startswith('backbone.')} == {1e-4}
    assert named['backbone.stages.0.blocks.0.mlp.fc1.weight']['weight_decay'] == 0.05


# --- What they do -----------------------------------------------------------------------------


@pytest.fixture(scope='session')
def places(tmp_path_factory) -> dict[str, dict]:
    """Per data set, what puts a config's data loaders on samples of it."""
    shapes = make_shapes(tmp_path_factory.mktemp('step') / 'shapes', train=4, val=2)
    photos = tmp_path_factory.mktemp('photos')
    folder = Path(SAMPLES or '')
    for split in ('train', 'val'):
        (photos / 'meta').mkdir(exist_ok=True)
        (photos / split).symlink_to(folder / 'coco_small' / 'images')
        names = sorted(path.name for path in (folder / 'coco_small' / 'images').glob('*'))[:8]
        lines = (f'{name} {label}\n' for label, name in enumerate(names))
        (photos / 'meta' / f'{split}.txt').write_text(''.join(lines))
    return {
        'shapes': dict(data_root=f'{shapes}/'),
        'imagenet': dict(data_root=str(photos)),
        'nuclei': dict(data_root=str(folder / 'nuclei256')),
        'camvid': dict(data_root=str(folder / 'camvid')),
        'coco': dict(
            data_root=str(folder / 'coco_mini320'),
            ann_file='instances_train2017.json',
            data_prefix=dict(img='train2017/'),
        ),
        'ade20k': dict(
            data_root=str(folder / 'ade_real'),
            data_prefix=dict(img_path='images', seg_map_path='annotations'),
        ),
    }


def put_on_samples(cfg: Config, place: dict) -> None:
    # mmseg evaluates one image at a time where sizes differ.
    for loader, batch_size in ((cfg.train_dataloader, 2), (cfg.val_dataloader, 1)):
        loader.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
        loader.dataset.update(place)


def shrink(node: object, factor: float) -> None:
    """Scale every size of a pipeline in place, so that a step takes seconds."""
    if isinstance(node, list | tuple):
        for item in node:
            shrink(item, factor)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ('scale', 'scales', 'crop_size') and node.get('scale_factor') is None:
                node[key] = scaled(value, factor)
            else:
                shrink(value, factor)


def scaled(size: object, factor: float) -> object:
    if isinstance(size, list | tuple):
        return type(size)(scaled(item, factor) for item in size)
    return max(round(size * factor), 32)


def slow_unless_quick(names: list[str]) -> list:
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


@needs_samples
@pytest.mark.parametrize('name', NAMES)
def test_training_pipeline_turns_real_samples_into_inputs(name, places):
    cfg = load(name)
    put_on_samples(cfg, places[name.rsplit('_', 1)[1]])
    set_random_seed(0)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for i in range(0, len(dataset), max(len(dataset) // 3, 1)):
        item = dataset[i]
        assert item['inputs'].dtype == torch.uint8
        assert item['inputs'].float().std() > 1
        sample = item['data_samples']
        height, width = item['inputs'].shape[1:]
        if cfg.default_scope == 'mmdet':
            assert sample.img_shape[:2] == (height, width)
            assert len(sample.gt_instances.labels) == len(sample.gt_instances.bboxes)
        elif cfg.default_scope == 'mmseg':
            crop = cfg.model.data_preprocessor.size
            assert sample.gt_sem_seg.data.shape == (1, height, width)
            assert (height, width) <= tuple(crop)
            labels = set(sample.gt_sem_seg.data.unique().tolist())
            assert labels <= {*range(cfg.model.decode_head.num_classes), 255}
            assert labels != {255}
        else:
            assert height == width == cfg.train_dataloader.dataset.pipeline[1].scale
            assert sample.gt_label.item() in range(8)


@needs_samples
@pytest.mark.parametrize('name', slow_unless_quick(NAMES))
def test_training_moves_every_parameter_and_the_model_predicts(name, places):
    cfg = load(name)
    put_on_samples(cfg, places[name.rsplit('_', 1)[1]])
    make_small(cfg)
    set_random_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    # Deformable attention starts with zero weights, behind which nothing moves in the first step.
    steps = 2 if name.startswith(('dino', 'mask2former')) else 1
    for _ in range(steps):
        losses = model.train_step(batch, optim_wrapper)
        assert all(torch.as_tensor(value).isfinite().all() for value in losses.values()), losses
    state = optim_wrapper.optimizer.state
    still = [
        name
        for name, parameter in model.named_parameters()
        if name in before
        and (torch.equal(parameter, before[name]) or not state[parameter]['exp_avg'].any())
    ]
    assert not still

    model.eval()
    batch = next(iter(Runner.build_dataloader(cfg.val_dataloader, seed=0)))
    with torch.no_grad():
        for sample in model.test_step(batch):
            check_prediction(sample, cfg)


def make_small(cfg: Config) -> None:
    """Keep the recipe, and take small images, few regions and no random depth."""
    cfg.model.backbone.drop_path_rate = 0.0
    # Clipped to 0.01, gradients behind a layer scale of 1e-5 are less than float32 resolves.
    cfg.optim_wrapper.clip_grad = None
    sizes = sizes_in(cfg.train_dataloader.dataset.pipeline)
    factor = 0.25 if max(sizes, default=0) > 256 else 1.0
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        shrink(loader.dataset.pipeline, factor)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = scaled(cfg.model.data_preprocessor.size, factor)
    if 'rpn' in cfg.model.get('train_cfg', {}):
        # Few of the anchors are on the smallest maps, and those are larger than a small image.
        cfg.model.train_cfg.rpn.sampler.num = 100_000
        cfg.model.train_cfg.rpn.allowed_border = -1
    rcnn = cfg.model.get('train_cfg', {}).get('rcnn', [])
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = 32
    if 'num_queries' in cfg.model:
        # DINO takes its queries from the cells of the maps, and a small image has fewer than 900.
        cfg.model.num_queries = 100
    if 'num_points' in cfg.model.get('decode_head', {}).get('train_cfg', {}):
        cfg.model.decode_head.train_cfg.num_points = 1024


def sizes_in(node: object, key: str = ''):
    if isinstance(node, dict | ConfigDict):
        for name, value in node.items():
            yield from sizes_in(value, name)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from sizes_in(item, key)
    elif key in ('scale', 'scales', 'crop_size'):
        yield node


def check_prediction(sample: object, cfg: Config) -> None:
    if cfg.default_scope == 'mmdet':
        found = sample.pred_instances
        height, width = sample.ori_shape[:2]
        assert found.bboxes.isfinite().all()
        assert found.scores.isfinite().all()
        if len(found):
            assert found.bboxes.max() <= max(height, width) + 1
        if 'masks' in found:
            assert found.masks.shape == (len(found), height, width)
    elif cfg.default_scope == 'mmseg':
        assert sample.pred_sem_seg.data.shape[1:] == sample.ori_shape[:2]
        assert sample.pred_sem_seg.data.max() < cfg.model.decode_head.num_classes
    else:
        assert sample.pred_score.shape == (1000,)
        assert sample.pred_score.sum() == pytest.approx(1, abs=1e-4)


@needs_samples
@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (
            'mask_rcnn_gcvit_xxtiny_coco',
            [
                'train_dataloader.dataset.data_root={SAMPLES}/coco_mini320',
                'train_dataloader.dataset.ann_file=instances_train2017.json',
                'train_dataloader.dataset.data_prefix.img=train2017/',
                'train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(160,128)]',
                'train_dataloader.dataset.pipeline.3.transforms.1.2.scales=[(160,128)]',
                'train_cfg.max_epochs=1',
            ],
        ),
        (
            'upernet_gcvit_tiny_ade20k',
            [
                'train_dataloader.dataset.data_root={SAMPLES}/ade_real',
                'train_dataloader.dataset.data_prefix.img_path=images',
                'train_dataloader.dataset.data_prefix.seg_map_path=annotations',
                'train_dataloader.dataset.pipeline.3.crop_size=(128,128)',
                'model.data_preprocessor.size=(128,128)',
                'train_cfg.max_iters=2',
            ],
        ),
    ],
)
@pytest.mark.slow
def test_the_train_command_runs_the_configs_on_real_data(name, options, tmp_path):
    output = succeed(
        'train.py', f'configs/{name}.py', '--work-dir', tmp_path, '--cfg-options',
        *(option.format(SAMPLES=SAMPLES) for option in options),
        'model.backbone.init_cfg=None', 'train_dataloader.dataset.indices=4',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None',
        'default_hooks.logger.interval=1', 'default_hooks.checkpoint.save_best=None',
    )  # fmt: skip
    assert '2/2]' in output
    assert 'nan' not in output.split('This run:')[1]
    assert list(Path(tmp_path).glob('*_[12].pth'))

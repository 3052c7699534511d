"""Learning rates that fall from layer to layer, in detectors, segmenters and classifiers."""

import re
from pathlib import Path

import pytest
import torch
from command_line import NANO, ROOT, on, succeed
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import gcvit_mm.engine  # noqa: F401  registers
from gcvit_mm import GCViT
from gcvit_mm.errors import UserError

LR, DECAY, RATE = 1e-4, 0.05, 0.9
PAGE = (ROOT / 'docs/use_in_your_config.md').read_text()
(SNIPPET,) = re.findall(r"```python\n([^`]+constructor='LayerDecay[^`]+)```", PAGE)
BACKBONE = dict(type='GCViT', arch='xxtiny')
CLASSIFIER = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
MODELS_BY_SCOPE = {
    'mmdet': (
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        dict(neck=dict(in_channels=[64, 128, 256, 512])),
    ),
    'mmseg': (
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        dict(decode_head=dict(in_channels=[64, 128, 256, 512])),
    ),
    'mmpretrain': (CLASSIFIER, dict(head=dict(in_channels=512))),
}


def load(tmp_path: Path, base: str, backbone: dict, rest: dict | None = None) -> Config:
    """A stock config with another backbone and the page's snippet."""
    path = tmp_path / 'child.py'
    model = {'backbone': {'_delete_': True, **backbone}, **(rest or {})}
    path.write_text(f"_base_ = '{base}'\n{SNIPPET}\nmodel = {model!r}\n")
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg: Config, device: str = 'meta') -> nn.Module:
    with torch.device(device):
        return MODELS.build(cfg.model)


def settings(model: nn.Module, optim_wrapper: dict) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter that is trained, each of them once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    groups = build_optim_wrapper(model, optim_wrapper).optimizer.param_groups
    for group in groups:
        for parameter in group['params']:
            assert names[parameter] not in found
            found[names[parameter]] = group['lr'], group['weight_decay']
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    return found


def layers(backbone: GCViT) -> dict[nn.Parameter, int]:
    """The layer of each parameter, from the modules in the order in which they run."""
    order = [[backbone.stem]]
    for stage in backbone.stages:
        blocks = [[block] for block in stage.blocks]
        blocks[0] += [stage.global_query] if stage.global_query else []
        blocks[-1] += [stage.downsample] if stage.downsample else []
        order += blocks
    return {p: i for i, parts in enumerate(order) for part in parts for p in part.parameters()}


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (0, 2), (0,)])
def test_the_stem_and_each_block_are_a_layer_and_the_rest_is_the_last(out_indices):
    with torch.device('meta'):
        backbone = GCViT('xtiny', out_indices=out_indices)
    expected = layers(backbone)
    blocks = sum((3, 4, 6, 5)[: out_indices[-1] + 1])
    assert max(expected.values()) == blocks
    for name, parameter in backbone.named_parameters():
        layer = expected.get(parameter, blocks + 1)
        assert (layer == blocks + 1) == name.startswith('norm')
        assert backbone.get_layer_depth(name) == (layer, blocks + 2), name
        assert backbone.get_layer_depth(f'a.b.{name}', 'a.b.') == (layer, blocks + 2), name
        assert backbone.get_layer_depth(name, 'backbone.') == (blocks + 1, blocks + 2), name


@pytest.mark.parametrize('scope', MODELS_BY_SCOPE)
def test_rates_fall_towards_the_stem_and_weight_decay_is_as_without(scope, tmp_path):
    base, rest = MODELS_BY_SCOPE[scope]
    cfg = load(tmp_path, base, BACKBONE, rest)
    model = build(cfg)
    expected = layers(model.backbone)
    norms = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters()
    }
    found = settings(model, cfg.optim_wrapper)
    for name, parameter in model.named_parameters():
        behind = 13 - expected.get(parameter, 13)  # 12 blocks and the stem
        spared = parameter in norms or name.endswith('relative_position_bias_table')
        assert found[name] == (pytest.approx(LR * RATE**behind), 0 if spared else DECAY), name
    assert found['backbone.stem.conv.weight'][0] == pytest.approx(LR * 0.9**13)
    assert len({rate for rate, _ in found.values()}) == 14


def test_parameters_of_equal_settings_share_a_group(tmp_path):
    base, rest = MODELS_BY_SCOPE['mmdet']
    cfg = load(tmp_path, base, BACKBONE, rest)
    groups = build_optim_wrapper(build(cfg), cfg.optim_wrapper).optimizer.param_groups
    assert len(groups) == 14 * 2  # with and without weight decay


def test_frozen_stages_are_left_out_and_change_no_rate(tmp_path):
    base, rest = MODELS_BY_SCOPE['mmdet']
    cfg = load(tmp_path, base, BACKBONE, rest)
    free = settings(build(cfg), cfg.optim_wrapper)
    cfg.model.backbone.frozen_stages = 2
    frozen = settings(build(cfg), cfg.optim_wrapper)
    assert frozen == {name: free[name] for name in frozen}
    parts = ('stem', 'stages.0', 'stages.1', 'norm0', 'norm1')
    assert free.keys() - frozen.keys() == {
        name for name in free if name.startswith(tuple(f'backbone.{part}.' for part in parts))
    }


def mmpretrains(optim_wrapper: Config) -> dict:
    constructor = 'mmpretrain.LearningRateDecayOptimWrapperConstructor'
    return {**optim_wrapper, 'constructor': constructor}


def test_a_classifier_has_the_rates_that_mmpretrain_gives_it(tmp_path):
    cfg = load(tmp_path, CLASSIFIER, BACKBONE, dict(head=dict(in_channels=512)))
    model = build(cfg)
    theirs = settings(model, mmpretrains(cfg.optim_wrapper))
    assert settings(model, cfg.optim_wrapper) == theirs


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='mmpretrain.SwinTransformer', arch='tiny', out_indices=(0, 1, 2, 3)),
        dict(type='mmpretrain.VisionTransformer', arch='deit-t', out_type='featmap'),
    ],
    ids=lambda backbone: backbone['type'],
)
def test_mmpretrains_backbones_have_their_rates_in_a_detector_too(backbone, tmp_path):
    base, _ = MODELS_BY_SCOPE['mmdet']
    cfg = load(tmp_path, base, backbone)
    found = settings(build(cfg, 'cpu'), cfg.optim_wrapper)
    theirs = load(tmp_path, CLASSIFIER, backbone)
    expected = settings(build(theirs, 'cpu'), mmpretrains(theirs.optim_wrapper))
    assert len({rate for rate, _ in expected.values()}) == 14
    for name in expected:
        if name.startswith('backbone.'):
            assert found[name] == pytest.approx(expected[name]), name
    assert {rate for name, (rate, _) in found.items() if 'backbone' not in name} == {LR}


class Tied(nn.Module):
    """Two backbones, one of them inside another module, and two heads with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.ModuleDict({'backbone': GCViT('xxtiny', out_indices=(0,))})
        self.backbone = GCViT('xxtiny', out_indices=(0,))
        self.heads = nn.ModuleList(nn.Linear(64, 2, bias=False) for _ in range(2))
        self.heads[1].weight = self.heads[0].weight


def optim_wrapper(**paramwise_cfg):
    return dict(
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=RATE) | paramwise_cfg,
    )


def test_a_parameter_with_two_names_is_refused_or_taken_once():
    with torch.device('meta'):
        model = Tied()
    with pytest.raises(UserError, match=r'heads\.0\.weight .*bypass_duplicate=True'):
        build_optim_wrapper(model, optim_wrapper())
    found = settings(model, optim_wrapper(bypass_duplicate=True))
    for backbone in ('backbone', 'student.backbone'):
        rate, _ = found[f'{backbone}.stages.0.blocks.0.norm1.weight']
        assert rate == pytest.approx(LR * RATE**2), backbone


def test_factors_of_custom_keys_multiply_the_rate_of_the_layer():
    with torch.device('meta'):
        model = Tied()
    keys = {'blocks.0': dict(lr_mult=10.0), 'heads': dict(lr_mult=3.0, decay_mult=0.5)}
    found = settings(model, optim_wrapper(bypass_duplicate=True, custom_keys=keys))
    assert found['heads.0.weight'] == (pytest.approx(3 * LR), pytest.approx(DECAY / 2))
    assert found['backbone.stages.0.blocks.0.mlp.fc1.bias'][0] == pytest.approx(10 * LR * RATE**2)
    assert found['backbone.stages.0.blocks.1.mlp.fc1.bias'][0] == pytest.approx(LR * RATE)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(layer_decay_rate=0), 'layer_decay_rate is 0:'),
        (dict(layer_decay_rate=1.1), 'layer_decay_rate is 1.1:'),
        (dict(layer_decay_rate='0.9'), 'layer_decay_rate is 0.9:'),
        (dict(layer_decay_rate=None), 'layer_decay_rate is None:'),
        (dict(decay_rate=0.9, num_layers=12), 'no option decay_rate, num_layers: '),
        (dict(custom_keys=['norm']), 'custom_keys must be a dict'),
    ],
)
def test_wrong_options_are_named_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        build_optim_wrapper(nn.Module(), optim_wrapper(**change))
    assert '\n' not in str(caught.value)


def test_an_optimizer_without_a_rate_is_refused():
    cfg = optim_wrapper() | dict(optimizer=dict(type='Adadelta'))
    with pytest.raises(UserError, match=r'optim_wrapper\.optimizer\.lr is not set'):
        build_optim_wrapper(nn.Module(), cfg)


def test_a_model_whose_layers_are_not_known_is_refused():
    model = nn.ModuleDict({'neck': nn.Linear(1, 1)})
    with pytest.raises(UserError, match='a module named backbone of ModuleDict has no method get'):
        build_optim_wrapper(model, optim_wrapper())
    model['backbone'] = nn.Linear(1, 1)
    with pytest.raises(UserError, match='Linear of ModuleDict has no method get_layer_depth'):
        build_optim_wrapper(model, optim_wrapper())


def test_the_log_has_one_line_per_layer(tmp_path):
    logger = MMLogger.get_instance(str(tmp_path), log_file=str(tmp_path / 'log'))
    with torch.device('meta'):
        model = Tied()
    build_optim_wrapper(model, optim_wrapper(bypass_duplicate=True, norm_decay_mult=0.0))
    logger.handlers[-1].flush()
    head, *lines = (tmp_path / 'log').read_text().partition('8 groups of ')[2].splitlines()
    assert [head, lines.pop(0).strip()] == ['parameters', 'layer decay 0.9']
    assert [line.partition(':')[0].strip() for line in lines] == [
        *(f'student.backbone layer {i}' for i in range(3)),
        'all else',
        *(f'backbone layer {i}' for i in range(3)),
    ]
    assert re.match(
        r' +student\.backbone layer 1: learning rate 8\.1e-05; \d+ tensors, 4 of', lines[1]
    )
    assert 'paramwise_options' not in (tmp_path / 'log').read_text()


def test_a_training_keeps_the_rates_of_its_layers(tiny_shapes, tmp_path):
    decay = (
        'optim_wrapper.constructor=LayerDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg.layer_decay_rate=0.5',
    )
    succeed('train.py', NANO, '--work-dir', tmp_path, *on(tiny_shapes, *decay))
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['optimizer']
    rates = {group['initial_lr'] for group in saved['param_groups']}
    assert sorted(rates) == pytest.approx([1e-3 * 0.5**i for i in range(9, -1, -1)])


def test_grouping_gives_each_parameter_the_settings_that_mmengine_gives():
    with torch.device('meta'):
        model = MODELS.build(BACKBONE)
    cfg = dict(
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'stem': dict(lr_mult=0.1)}),
    )
    grouped = dict(cfg, constructor='GroupedOptimWrapperConstructor')
    assert settings(model, grouped) == settings(model, cfg)
    assert len(build_optim_wrapper(model, grouped).optimizer.param_groups) == 3

"""The backbone: exact to its references, for any size, and well-behaved in training."""

import copy

import pytest
import timm
import torch
from mmengine.registry import MODELS
from mmengine.utils import digit_version
from reference import CASES, KEYS, differences, image, tensor, write_official
from torch import nn

from gcvit_mm import ARCHS, GCViT
from gcvit_mm.weights.names import convert_names

NANO = dict(
    dim=32, depths=(2, 2, 3, 2), num_heads=(1, 2, 4, 8), mlp_ratio=2, layer_scale=0.5,
    drop_path_rate=0.0,
)  # fmt: skip
IMPLEMENTATIONS = ('eager', 'sdpa')


def nano(seed: int = 0, **options) -> GCViT:
    """A small model whose every parameter matters: biases and gammas are not at their zeros."""
    torch.manual_seed(seed)
    model = GCViT(NANO, **options)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


# --- Against references -----------------------------------------------------------------------


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('tag', CASES)
def test_official_files_give_the_outputs_of_the_official_model(tag, impl, tmp_path):
    case = CASES[tag]
    file = write_official(tmp_path / 'official.pth.tar', case['variant'])
    model = GCViT(
        case['variant'],
        window_size=case['windows'],
        attn_impl=impl,
        init_cfg=dict(type='Pretrained', checkpoint=file),
    ).eval()
    model.init_weights()
    with torch.no_grad():
        if case['task'] == 'classification':
            pooled = model(image(tag, case['shape']))[3].mean(dim=(2, 3))
            head = {k: tensor(f'head.{k}', KEYS[case['variant']][f'head.{k}']) for k in
                    ('weight', 'bias')}  # fmt: skip
            outputs = {'pooled': pooled, 'logits': nn.functional.linear(pooled, **head)}
        else:
            for i in range(4):
                for name, parameter in model.get_submodule(f'norm{i}').named_parameters():
                    parameter.copy_(tensor(f'norm{i}.{name}', tuple(parameter.shape)))
            outputs = {f'out{i}': out for i, out in enumerate(model(image(tag, case['shape'])))}
    assert max(differences(tag, outputs).values()) < 1e-4


@pytest.mark.parametrize('arch', ['xxtiny', 'xtiny', 'tiny', 'small', 'base'])
def test_timm_weights_give_timm_features_for_every_variant_that_timm_has(arch):
    torch.manual_seed(0)
    reference = timm.create_model(f'gcvit_{arch}', pretrained=False).eval()
    for name, parameter in reference.named_parameters():
        if 'bias' in name or 'gamma' in name:  # zero, or next to it, in timm's initialisation
            parameter.data.normal_(std=0.3)
    model = GCViT(arch).eval()
    weights, naming = convert_names(reference.state_dict())
    assert naming == 'timm'
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) == {f'norm{i}.{p}' for i in range(3) for p in ('weight', 'bias')}
    assert set(unexpected) == {'head.weight', 'head.bias'}
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for batch in (images[:1], images):
            expected = reference.forward_features(batch)
            assert torch.allclose(model(batch)[3], expected, atol=1e-4)


CLASSIFIER = dict(
    xxtiny=11_995_428, xtiny=19_981_294, tiny=28_221_974, tiny2=34_535_654, small=51_092_173,
    small2=68_615_197, base=90_320_836, large=202_075_570,
)  # fmt: skip
DENSE = dict(
    xxtiny=11_644_124, xtiny=19_748_310, tiny=28_142_910, tiny2=34_574_990, small=50_974_077,
    small2=68_568_141, base=90_163_708, large=201_840_378,
)  # fmt: skip


@pytest.mark.parametrize('arch', ARCHS)
def test_parameter_counts_are_the_published_ones(arch):
    with torch.device('meta'):
        classifier = GCViT(arch, out_indices=(3,))
        dense = GCViT(arch, window_size=24)
    head = (classifier.out_channels[0] + 1) * 1000
    assert sum(p.numel() for p in classifier.parameters()) + head == CLASSIFIER[arch]
    assert sum(p.numel() for p in dense.parameters()) == DENSE[arch]


@pytest.mark.parametrize('real', ['meta', 'cpu'])
@pytest.mark.parametrize('how', ['copied', 'assigned', 'by hand'])
def test_a_backbone_that_gets_its_values_later_computes_equal_feature_maps(how, real):
    torch.manual_seed(0)
    source = nano(window_size=5, drop_path_rate=0.5)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.device(real):
        filled = nano(window_size=5, drop_path_rate=0.5)
    holder = torch.nn.Sequential(filled)  # as in a detector
    state = {f'0.{name}': tensor for name, tensor in source.state_dict().items()}
    if how == 'by hand' and real == 'meta':
        with torch.no_grad():
            for mine, other in zip(
                holder.to_empty(device='cpu').parameters(), source.parameters(), strict=True
            ):
                mine.copy_(other)
    elif how == 'assigned':
        holder.load_state_dict(state, assign=True)
    else:
        holder.to_empty(device='cpu').load_state_dict(state)
    images = torch.randn(2, 3, 64, 80)
    for mode in (True, False):
        source.train(mode)
        filled.train(mode)
        torch.manual_seed(1)
        expected = source(images)
        torch.manual_seed(1)
        for mine, other in zip(filled(images), expected, strict=True):
            assert torch.equal(mine, other)


def test_drop_path_rises_linearly_over_all_blocks():
    rates = [b.drop_path.rate for s in GCViT('xxtiny').stages for b in s.blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])


def test_third_stage_pools_its_query_unless_its_window_is_a_sixteenth_of_the_training_size():
    def pools(window, size):
        return GCViT(NANO, window_size=window, pretrain_size=size).stages[2].global_query.pools

    assert pools((7, 7, 14, 7), 224) == (False,)
    assert pools((12, 12, 24, 12), 384) == (False,)
    assert pools((24, 24, 24, 24), 224) == (True,)


# --- Any input --------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(1, 1), (31, 33), (32, 32), (97, 64), (130, 259)])
def test_any_image_size_gives_a_map_of_each_stride(size):
    model = nano(window_size=5).eval()
    with torch.no_grad():
        outs = model(torch.randn(1, 3, *size))
    for out, channels, stride in zip(outs, model.out_channels, model.out_strides, strict=True):
        assert out.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert out.isfinite().all()


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
@pytest.mark.parametrize('size', [(64, 64), (75, 102)])
def test_images_of_a_batch_do_not_influence_each_other(size, impl):
    model = nano(window_size=(3, 4, 5, 3), attn_impl=impl).eval()
    a, b = torch.randn(2, 1, 3, *size)
    with torch.no_grad():
        together = model(torch.cat([a, b]))
        alone = [torch.cat(pair) for pair in zip(model(a), model(b), strict=True)]
    for x, y in zip(together, alone, strict=True):
        assert torch.allclose(x, y, atol=1e-5)


def test_out_indices_choose_maps_and_later_stages_are_not_built():
    full = nano().eval()
    part = GCViT(NANO, out_indices=(0, 2)).eval()
    part.load_state_dict({k: v for k, v in full.state_dict().items() if k in part.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    assert part.out_channels == (32, 128)
    assert part.out_strides == (4, 16)
    assert len(part.stages) == 3
    for mine, theirs in zip(part(x), full(x)[::2], strict=True):
        assert torch.equal(mine, theirs)


def test_images_may_have_other_than_three_channels():
    assert nano(in_channels=5)(torch.randn(1, 5, 32, 32))[0].shape == (1, 32, 8, 8)


def test_evaluation_follows_changed_weights_and_image_sizes():
    # Biases are kept from image to image; each of these ways to change weights is in use.
    def in_place(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)

    def by_data(model):  # as averages of weights are swapped in; autograd does not see it
        for parameter in model.parameters():
            parameter.data.copy_(parameter.data * 0.5)

    def by_loading(model):
        model.load_state_dict(nano(seed=1, window_size=5).state_dict())

    model = nano(window_size=5).double().eval()
    images = [
        torch.randn(1, 3, *size).double() for size in ((70, 90), (70, 90), (90, 70), (33, 90))
    ]
    for change in (lambda model: None, in_place, by_data, by_loading):
        change(model)
        fresh = nano(window_size=5).double().eval()
        fresh.load_state_dict(model.state_dict())
        for x in images:
            with torch.no_grad():
                outs = model(x)
            for out, expected in zip(outs, fresh(x), strict=True):  # with gradients, nothing kept
                assert torch.allclose(out, expected, atol=1e-10)


# --- Training ---------------------------------------------------------------------------------


def training_step(model: GCViT, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    outs = model(x)
    sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outs).backward()
    return outs


@pytest.mark.parametrize(
    ('windows', 'size'),
    [
        ((3, 4, 5, 3), (70, 90)),  # cut off at both borders
        ((4, 4, 2, 2), (64, 96)),  # at none
        ((4, 2, 2, 1), (64, 40)),  # at one
        ((8, 8, 8, 8), (40, 20)),  # maps smaller than a window
    ],
)
def test_eager_and_sdpa_agree_in_values_and_gradients(windows, size):
    eager = nano(window_size=windows, attn_impl='eager').double()
    sdpa = nano(window_size=windows, attn_impl='sdpa').double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for a, b in zip(training_step(eager, x), training_step(sdpa, x), strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    expected = gradients(sdpa)
    for name, gradient in gradients(eager).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-7, atol=1e-9), name


@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
def test_checkpointing_changes_neither_values_nor_gradients(impl):
    plain = nano(attn_impl=impl).double()
    checkpointed = nano(attn_impl=impl, with_cp=True).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for a, b in zip(training_step(plain, x), training_step(checkpointed, x), strict=True):
        assert torch.equal(a, b)
    expected = gradients(plain)
    for name, gradient in gradients(checkpointed).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-9), name


def test_checkpointing_repeats_the_same_drop_path():
    torch.manual_seed(0)
    plain = nano(drop_path_rate=0.5).double()
    checkpointed = nano(drop_path_rate=0.5, with_cp=True).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        training_step(model, x)
    expected = gradients(plain)
    for name, gradient in gradients(checkpointed).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-9), name


@pytest.mark.parametrize('depths', [(2, 2, 3, 2), (1, 1, 2, 1)])
def test_every_parameter_receives_a_gradient(depths):
    model = GCViT({**NANO, 'depths': depths})
    training_step(model, torch.randn(2, 3, 64, 64))
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages_do_not_train_and_the_rest_does(frozen_stages):
    model = nano(frozen_stages=frozen_stages).train()
    before = copy.deepcopy(model.state_dict())
    trainable = [p for p in model.parameters() if p.requires_grad]
    if trainable:
        training_step(model, torch.randn(2, 3, 64, 64))
        torch.optim.SGD(trainable, lr=1.0).step()
    frozen = ['stem.'] * (frozen_stages >= 0)
    frozen += [f'{part}{i}.' for part in ('stages.', 'norm') for i in range(frozen_stages)]
    for name, value in model.state_dict().items():
        unchanged = torch.equal(value, before[name])
        assert unchanged == name.startswith(tuple(frozen)), name


def test_frozen_stages_drop_no_paths():
    model = nano(frozen_stages=2, drop_path_rate=0.9).train()
    x = torch.randn(8, 3, 32, 32)
    (a, b, c, _), (d, e, f, _) = model(x), model(x)
    assert torch.equal(a, d)
    assert torch.equal(b, e)
    assert not torch.equal(c, f)


def test_train_and_eval_return_the_model():
    model = nano()
    assert model.train() is model
    assert model.eval() is model


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('impl', IMPLEMENTATIONS)
def test_half_precision_is_finite_and_near_float32(dtype, impl):
    if dtype == torch.float16 and digit_version(torch.__version__) < digit_version('2.3'):
        pytest.skip('this torch has no float16 on CPUs')
    model = nano(attn_impl=impl)
    x = torch.randn(1, 3, 64, 96)
    expected = model(x)
    with torch.autocast('cpu', dtype=dtype):
        outs = training_step(model, x)
    for out, reference in zip(outs, expected, strict=True):
        assert out.isfinite().all()
        assert (out.float() - reference).abs().mean() < 0.1 * reference.abs().mean()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    half = copy.deepcopy(model).eval().to(dtype)
    assert all(out.isfinite().all() for out in half(x.to(dtype)))


def test_drop_path_drops_whole_images_while_training_only():
    model = nano(drop_path_rate=0.9)
    x = torch.randn(1, 3, 32, 32).repeat(64, 1, 1, 1)
    out = model.train()(x)[3]
    assert out.std(dim=0).max() > 0.1
    out = model.eval()(x)[3]
    assert out.std(dim=0).max() < 1e-4


def test_fresh_weights_are_those_of_the_paper():
    model = GCViT('xxtiny')
    block = model.stages[2].blocks[1]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.qkv.bias.abs().max() == 0


# --- Arguments and registry -------------------------------------------------------------------


def test_registry_of_mmengine_builds_the_backbone():
    model = MODELS.build(dict(type='GCViT', arch='xxtiny', window_size=7))
    assert isinstance(model, GCViT)
    assert model.out_channels == (64, 128, 256, 512)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='tinyy'), 'xxtiny.*tiny2.*large'),
        (dict(arch=dict(dim=64, depths=(1, 1, 1, 1))), 'num_heads'),
        (dict(arch={**NANO, 'drop': 0.1}), 'exactly the keys'),
        (dict(arch={**NANO, 'num_heads': (1, 2, 3, 8)}), 'stage 2'),
        (dict(arch={**NANO, 'depths': (2, 2)}), 'depths'),
        (dict(arch='tiny', window_size=(7, 7)), 'window_size'),
        (dict(arch='tiny', attn_impl='flash'), "'auto', 'eager', 'sdpa', 'triton'"),
        (dict(arch='tiny', frozen_stages=5), 'frozen_stages'),
        (dict(arch='tiny', out_indices=(3, 1)), 'out_indices'),
        (dict(arch='tiny', drop_path_rate=1.0), 'drop_path_rate'),
        (dict(arch='tiny', compile_sides=800), 'compile_sides must be a list of pixels, not 800'),
        (dict(arch='tiny', compile_sides=(0, 800)), 'compile_sides'),
    ],
)
def test_wrong_arguments_are_refused_with_the_valid_choices(options, message):
    with pytest.raises(ValueError, match=message):
        GCViT(**options)


def test_misspelt_arguments_are_refused():
    with pytest.raises(TypeError, match='windows_size'):
        GCViT('tiny', windows_size=7)

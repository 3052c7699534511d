"""Conversion converts every tensor or lists it as skipped, loses nothing, and leads back."""

import resource
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from command_line import ROOT, fail, succeed
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from reference import CASES, KEYS, differences, image, official_state, write_official
from safetensors import safe_open
from timm.models.gcvit import GlobalContextVit

from gcvit_mm import ARCHS, GCViT
from gcvit_mm.errors import UserError
from gcvit_mm.weights.convert import convert
from gcvit_mm.weights.files import read_checkpoint, state_dict_of, write_checkpoint
from gcvit_mm.weights.load import load_pretrained

CLASSIFIER, DENSE = 'classification', 'dense'
OUTER_NORMS = [f'norm{i}.{p}' for i in range(3) for p in ('weight', 'bias')]


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp('official') / 'gcvit_1k_xxtiny.pth.tar', 'xxtiny')


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run the script in this process; give what it printed."""
    script = runpy.run_path(str(ROOT / 'tools/convert_checkpoint.py'))

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, arguments)])
        script['main']()
        return capsys.readouterr().out

    return run


def meta_official(variant: str) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device='meta') for name, shape in KEYS[variant].items()}


def meta_timm(variant: str) -> torch.nn.Module:
    arch = ARCHS[variant]
    with torch.device('meta'):
        return GlobalContextVit(
            depths=arch['depths'],
            num_heads=arch['num_heads'],
            mlp_ratio=arch['mlp_ratio'],
            embed_dim=arch['dim'],
            layer_scale=arch['layer_scale'],
        )


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def assert_same(state, other) -> None:
    assert state.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())


# --- Names ------------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', ARCHS)
def test_official_names_become_those_of_the_classifiers_config(variant):
    cfg = Config.fromfile(ROOT / f'configs/gcvit_{variant}_imagenet.py')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build({**cfg.model, 'data_preprocessor': None})
    conversion = convert(meta_official(variant), CLASSIFIER)
    assert shapes(conversion.tensors) == shapes(model.state_dict())
    assert (conversion.skipped, conversion.classes) == ({}, 1000)
    assert (conversion.naming, conversion.variant) == ('official', f'GC ViT {variant}')
    assert conversion.windows == (7, 7, 14, 7)


@pytest.mark.parametrize('variant', ARCHS)
def test_official_names_become_those_of_timm_and_lead_back(variant):
    ours = convert(meta_official(variant), CLASSIFIER)
    timms = convert(ours.tensors, CLASSIFIER, to='timm')
    assert shapes(timms.tensors) == shapes(meta_timm(variant).state_dict())
    again = convert(timms.tensors, CLASSIFIER)
    assert (timms.naming, again.naming) == ('gcvit_mm', 'timm')
    assert shapes(again.tensors) == shapes(ours.tensors)


@pytest.mark.parametrize('variant', ['xxtiny', 'xtiny', 'tiny', 'small', 'base'])
def test_names_for_timm_are_those_of_its_own_models(variant):
    with torch.device('meta'):
        model = timm.create_model(f'gcvit_{variant}')
    converted = convert(meta_official(variant), CLASSIFIER, to='timm')
    assert shapes(converted.tensors) == shapes(model.state_dict())


@pytest.mark.parametrize('windows', [(8, 8, 8, 8), (12, 12, 24, 12)])
def test_timm_takes_other_windows_in_a_model_of_the_size_that_is_printed(windows, tool, tmp_path):
    source, target = tmp_path / 'ours.pth', tmp_path / 'timm.pth'
    torch.save(GCViT('xxtiny', window_size=windows).state_dict(), source)
    output = tool(source, target, '--task', DENSE, '--to', 'timm')
    size = windows[0] * 32
    assert f'in timm: img_size={size}, window_size={windows}' in output
    model = timm.create_model('gcvit_xxtiny', num_classes=0, img_size=size, window_size=windows)
    model.load_state_dict(torch.load(target))


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_the_way_to_timm_and_back_changes_no_bit(prefix):
    ours = convert({prefix + k: v for k, v in official_state('xxtiny').items()}, CLASSIFIER).tensors
    timms = convert(ours, CLASSIFIER, to='timm').tensors
    assert_same(convert({prefix + k: v for k, v in timms.items()}, CLASSIFIER).tensors, ours)
    theirs = timm.create_model('gcvit_xxtiny').half().state_dict()
    assert_same(convert(convert(theirs, CLASSIFIER).tensors, CLASSIFIER, 'timm').tensors, theirs)


# --- Outputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('tag', 'suffix'), [('cls_xxtiny_224', 'pth'), ('cls_small_224', 'safetensors')]
)
def test_a_converted_official_file_gives_the_official_logits(tag, suffix, tool, tmp_path):
    variant = CASES[tag]['variant']
    file = tmp_path / f'ours.{suffix}'
    tool(write_official(tmp_path / 'official.pth.tar', variant), file, '--task', CLASSIFIER)
    cfg = Config.fromfile(ROOT / f'configs/gcvit_{variant}_imagenet.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(state_dict_of(read_checkpoint(file)), strict=True)
    with torch.no_grad():
        pooled = model.extract_feat(image(tag, CASES[tag]['shape']))[-1]
        outputs = {'pooled': pooled, 'logits': model.head((pooled,))}
    assert max(differences(tag, outputs).values()) < 1e-4


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_timm_takes_a_file_for_it_as_it_is_and_gives_the_official_logits(
    suffix, official, tool, tmp_path
):
    tag, file = 'cls_xxtiny_224', tmp_path / f'timm.{suffix}'
    tool(official, file, '--task', CLASSIFIER, '--to', 'timm')
    model = timm.create_model('gcvit_xxtiny', checkpoint_path=str(file)).eval()  # strict
    with torch.no_grad():
        logits = model(image(tag, CASES[tag]['shape']))
    assert differences(tag, {'logits': logits})['logits'] < 1e-4
    if suffix == 'pth':
        model.load_state_dict(torch.load(file))


def test_a_converted_file_passes_the_test_of_the_classifiers_config(official, tmp_path):
    folder = tmp_path / 'val'
    folder.mkdir()
    (tmp_path / 'val.txt').write_text('0.png 3\n')
    cv2.imwrite(str(folder / '0.png'), np.random.default_rng(0).integers(0, 255, (250, 300, 3)))
    file = tmp_path / 'classifier.safetensors'
    output = succeed('convert_checkpoint.py', official, file, '--task', CLASSIFIER)
    assert 'converted: 226 tensors, 1000 classes\nskipped: 0 tensors\n' in output
    options = {
        'dataset.data_root': tmp_path, 'dataset.ann_file': 'val.txt', 'num_workers': 0,
        'persistent_workers': False,
    }  # fmt: skip
    output = succeed(
        'test.py', 'configs/gcvit_xxtiny_imagenet.py', file, '--work-dir', tmp_path / 'work',
        '--cfg-options', *(f'test_dataloader.{k}={v}' for k, v in options.items()),
    )  # fmt: skip
    assert '226 of 226 tensors fit, 0 are not used' in output
    assert 'accuracy/top1' in output


# --- For dense tasks --------------------------------------------------------------------------


def detector(backbone: GCViT) -> dict[str, torch.Tensor]:
    return {
        **{f'module.backbone.{name}': value for name, value in backbone.state_dict().items()},
        'module.neck.lateral_convs.0.conv.weight': torch.zeros(2),
        'module.roi_head.bbox_head.fc_cls.weight': torch.zeros(3),
        'module.roi_head.bbox_head.fc_cls.bias': torch.zeros(3),
    }


def test_the_backbone_of_each_kind_of_file_loads_by_init_cfg(official, tool, tmp_path):
    classifier, theirs, dense = (tmp_path / n for n in ('c.pth', 't.safetensors', 'd.pth.tar'))
    tool(official, classifier, '--task', CLASSIFIER)
    tool(classifier, theirs, '--task', DENSE, '--to', 'timm')
    output = tool(theirs, dense, '--task', DENSE)
    assert 'converted: 224 tensors\nskipped: 0 tensors\n' in output
    models = []
    for file in (official, classifier, theirs, dense):
        torch.manual_seed(0)
        init_cfg = dict(type='Pretrained', checkpoint=str(file))
        models.append(GCViT('xxtiny', window_size=(7, 7, 24, 7), init_cfg=init_cfg))
        models[-1].init_weights()
    report = load_pretrained(GCViT('xxtiny'), str(dense))
    assert (report.resized, report.unused, report.new) == ([], [], OUTER_NORMS)
    assert load_pretrained(GCViT('xxtiny'), str(classifier)).unused == [
        'head.weight',
        'head.bias',
    ]
    for model in models[1:]:
        assert_same(model.state_dict(), models[0].state_dict())


def test_a_detectors_backbone_comes_out_whole_and_the_rest_is_listed_by_module():
    backbone = GCViT('xxtiny', window_size=8)
    conversion = convert(detector(backbone), DENSE)
    assert_same(conversion.tensors, backbone.state_dict())
    assert {group: len(names) for group, names in conversion.skipped.items()} == {
        'neck': 1,
        'roi_head': 2,
    }
    assert conversion.windows == (8, 8, 8, 8)
    timms = convert(detector(backbone), DENSE, to='timm')
    assert timms.skipped['output norms of the first stages'] == OUTER_NORMS


def test_stages_channels_and_sizes_that_no_variant_has_convert_as_well():
    arch = dict(dim=32, depths=(2, 1, 3, 1), num_heads=(1, 2, 4, 8), mlp_ratio=2.5,
                layer_scale=0.1, drop_path_rate=0.0)  # fmt: skip
    for options in ({}, dict(out_indices=(1, 2)), dict(in_channels=5)):
        model = GCViT(arch, **options)
        assert_same(convert(model.state_dict(), DENSE).tensors, model.state_dict())


@pytest.mark.parametrize('source', [(7, 7, 14, 7), (12, 12, 24, 12), (16, 16, 32, 16)])
def test_weights_of_any_resolution_load_into_any_windows_so_that_converting_resizes_none(
    source, tmp_path
):
    file = str(tmp_path / 'source.pth')
    model = GCViT('xxtiny', window_size=source, out_indices=(3,))
    conversion = convert(model.state_dict(), DENSE)
    write_checkpoint(file, conversion.tensors)
    assert conversion.windows == source
    for target in ((7, 7, 14, 7), 24, (8, 8, 16, 8), source):
        report = load_pretrained(GCViT('xxtiny', window_size=target, out_indices=(3,)), file)
        windows = (target,) * 4 if isinstance(target, int) else target
        kept = [i for i in range(4) if windows[i] == source[i]]
        assert len(report.resized) == sum((2, 2, 6, 2)[i] for i in range(4) if i not in kept)
        assert (report.new, report.unused) == ([], [])


# --- Averages ---------------------------------------------------------------------------------


def test_the_average_of_a_timm_trainers_file_is_taken_when_asked_for(tool, tmp_path):
    state, file = official_state('xxtiny'), tmp_path / 'both.pth.tar'
    average = {name: value + 1 for name, value in state.items()}
    torch.save({'state_dict': state, 'state_dict_ema': average, 'epoch': 3}, file)
    output = tool(file, tmp_path / 'plain.pth', '--task', CLASSIFIER)
    assert '--ema converts their moving average, state_dict_ema' in output
    assert 'not read: epoch, state_dict_ema' in output or 'not read: state_dict_ema' in output
    output = tool(file, tmp_path / 'average.pth', '--task', CLASSIFIER, '--ema')
    assert 'moving average (EMA), from the entry state_dict_ema' in output
    for name, expected in (('plain', state), ('average', average)):
        written = state_dict_of(read_checkpoint(tmp_path / f'{name}.pth'))
        assert torch.equal(written['head.fc.weight'], expected['head.weight'])
        assert torch.equal(written['backbone.norm3.bias'], expected['norm.bias'])


class Model(BaseModel):
    """Something that mmengine trains."""

    def __init__(self) -> None:
        super().__init__()
        arch = dict(dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), mlp_ratio=1,
                    layer_scale=None, drop_path_rate=0.0)  # fmt: skip
        self.backbone = GCViT(arch, window_size=2, out_indices=(3,))

    def forward(self, x: torch.Tensor, mode: str = 'tensor') -> dict[str, torch.Tensor]:
        return {'loss': self.backbone(x)[0].square().sum()}


def test_the_average_of_mmengines_file_is_its_state_dict_with_or_without_asking(tool, tmp_path):
    hook = EMAHook(momentum=0.25)
    runner = Runner(
        Model(), str(tmp_path), dict(dataset=[dict(x=torch.ones(3, 32, 32))] * 4, batch_size=2,
        collate_fn=dict(type='default_collate'), sampler=dict(type='DefaultSampler')),
        train_cfg=dict(by_epoch=True, max_epochs=1), custom_hooks=[hook], log_level='ERROR',
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), experiment_name=tmp_path.name,
    )  # fmt: skip
    runner.train()
    average = hook.ema_model.module.backbone.state_dict()
    assert not torch.equal(average['norm3.bias'], runner.model.backbone.norm3.bias)
    for options in ((), ('--ema',)):
        file = tmp_path / f'{len(options)}.pth'
        output = tool(tmp_path / 'epoch_1.pth', file, '--task', DENSE, *options)
        assert 'moving average (EMA), from the entry state_dict' in output
        assert_same(state_dict_of(read_checkpoint(file)), average)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: dict(model_state_dict=s, optimizer_state_dict={}),
        lambda s: dict(net=s, acc=1.0, epoch=2),
        lambda s: dict(params=s, params_ema=zeros(s)),
        lambda s: dict(teacher={f'module.{k}': v for k, v in s.items()}),
        lambda s: dict(weights=s, optimizer=dict(state={0: dict(step=torch.ones(1))})),
        lambda s: dict(model=s, ema=zeros(s)),
        lambda s: dict(ema=s),
    ],
)
def test_weights_are_found_in_whatever_entry_they_are(wrap, tool, tmp_path):
    state = timm.create_model('gcvit_xxtiny', num_classes=7).state_dict()
    torch.save(wrap(state), tmp_path / 'wrapped.pth')
    model = GCViT('xxtiny')
    load_pretrained(model, str(tmp_path / 'wrapped.pth'))
    assert torch.equal(model.stem.conv.weight, state['stem.conv1.weight'])
    tool(tmp_path / 'wrapped.pth', tmp_path / 'out.pth', '--task', CLASSIFIER)


def zeros(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def test_a_moving_average_in_any_entry_can_be_asked_for(tool, tmp_path):
    state = timm.create_model('gcvit_xxtiny', num_classes=7).state_dict()
    torch.save(dict(params=zeros(state), params_ema=state), tmp_path / 'both.pth')
    output = tool(tmp_path / 'both.pth', tmp_path / 'out.pth', '--task', DENSE, '--ema')
    assert 'from the entry params_ema' in output
    written = state_dict_of(read_checkpoint(tmp_path / 'out.pth'))
    assert torch.equal(written['stem.conv.weight'], state['stem.conv1.weight'])


def test_one_of_two_backbones_is_chosen_by_its_prefix(tool, tmp_path):
    state = timm.create_model('gcvit_xxtiny', num_classes=7).state_dict()
    student = {f'module.{name}': tensor for name, tensor in zeros(state).items()}
    named = {f'ema.{name}': tensor for name, tensor in zeros(state).items()}
    for content, prefixes, prefix in (
        (dict(student=student, teacher=state), "'student.module.' and 'teacher.'", 'teacher.'),
        ({**state, **named}, "'' and 'ema.'", ''),
    ):
        torch.save(content, tmp_path / 'two.pth')
        arguments = tmp_path / 'two.pth', tmp_path / f'{prefix}out.pth', '--task', CLASSIFIER
        with pytest.raises(UserError, match=f'at {prefixes}.*init_cfg.prefix.*--prefix'):
            tool(*arguments)
        tool(*arguments, '--prefix', prefix)
        written = state_dict_of(read_checkpoint(arguments[1]))
        assert torch.equal(written['backbone.stem.conv.weight'], state['stem.conv1.weight'])
        model = GCViT('xxtiny')
        load_pretrained(model, str(tmp_path / 'two.pth'), prefix=prefix)
        assert torch.equal(model.stem.conv.weight, state['stem.conv1.weight'])


def test_a_file_without_weights_is_refused_with_its_entries(tmp_path, tool):
    torch.save(dict(epoch=3, best=0.5), tmp_path / 'log.pth')
    with pytest.raises(UserError, match='no tensors, only the entries epoch, best'):
        tool(tmp_path / 'log.pth', tmp_path / 'out.pth', '--task', DENSE)


def test_a_missing_average_is_an_error_that_says_what_is_there(official, tool, tmp_path):
    with pytest.raises(UserError, match=r'no moving average.*epoch, arch, state_dict, args'):
        tool(official, tmp_path / 'x.pth', '--task', DENSE, '--ema')
    assert not list(tmp_path.iterdir())


# --- What is refused --------------------------------------------------------------------------


def changed(change) -> dict[str, torch.Tensor]:
    state = meta_official('xxtiny')
    change(state)
    return state


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda s: s.update({'levels.0.extra': s['norm.bias']}),
            r'unknown \(stages.0.extra',
        ),
        (lambda s: s.pop('levels.3.blocks.1.mlp.fc2.bias'), r'1 tensors are missing \(stages.3'),
        (lambda s: s.pop('patch_embed.proj.weight'), r'missing \(stem.conv.weight'),
        (lambda s: s.pop('levels.0.blocks.0.mlp.fc1.weight'), 'missing.*stages.0.blocks.0.mlp.fc1'),
        (
            lambda s: s.pop('levels.1.blocks.0.attn.relative_position_bias_table'),
            r'missing \(stages.1.blocks.0.attn.relative_position_bias_table',
        ),
        (
            lambda s: s.update({'levels.0.blocks.1.norm1.bias': torch.empty(3)}),
            'shape.*levels|of another shape .stages.0.blocks.1.norm1.bias',
        ),
        (lambda s: s.update({'norm3.bias': s['norm.bias']}), 'two tensors for norm3.bias'),
        (lambda s: s.pop('head.bias'), 'no classifier with a linear head'),
        (
            lambda s: s.update({f'ema.{k}': v for k, v in meta_official('xxtiny').items()}),
            "more than one backbone, at '' and 'ema.'",
        ),
    ],
)
def test_a_tensor_too_many_too_few_or_of_another_shape_is_named(change, message):
    with pytest.raises(UserError, match=message):
        convert(changed(change), CLASSIFIER)


def test_what_stands_beside_a_backbone_must_belong_to_its_model():
    state = {f'module.{name}': value for name, value in meta_official('xxtiny').items()}
    with pytest.raises(UserError, match='unknown tensors: n_averaged'):
        convert({**state, 'n_averaged': torch.tensor(3)}, CLASSIFIER)
    state = convert(state, CLASSIFIER).tensors
    with pytest.raises(UserError, match=r'a classifier does not have: neck\.weight'):
        convert({**state, 'neck.weight': torch.empty(3)}, CLASSIFIER)


def test_index_buffers_are_skipped_by_name():
    index = 'levels.0.blocks.0.attn.relative_position_index'
    conversion = convert({**meta_official('xxtiny'), index: torch.empty(49, 49)}, CLASSIFIER)
    assert conversion.skipped == {'index buffers, computed from the windows': [index]}


def test_errors_of_the_command_line_write_nothing(official, tool, tmp_path):
    (tmp_path / 'there.pth').write_text('precious')
    (tmp_path / 'cut.safetensors').write_bytes(Path(official).read_bytes()[:5000])
    (tmp_path / 'folder.pth').mkdir()
    before = content(tmp_path)
    for arguments, message in (
        ((official, 'there.pth'), 'there.pth exists: .*--force'),
        ((official, 'folder.pth', '--force'), 'folder.pth is a folder'),
        ((official, 'x.bin'), r'x.bin: the name must end in .pth, .pth.tar, .safetensors'),
        ((official, 'no/x.pth'), 'folder .*/no does not exist'),
        (('there.pth', 'x.pth'), 'there.pth is not a checkpoint'),
        (('cut.safetensors', 'x.pth'), 'cut.safetensors cannot be read'),
        (('absent.pth', 'x.pth'), 'absent.pth does not exist'),
        (('there.pth', 'there.pth', '--force'), 'there.pth is .*the source itself'),
    ):
        source, target, *options = arguments
        with pytest.raises(UserError, match=message):
            tool(tmp_path / source, tmp_path / target, '--task', DENSE, *options)
    assert content(tmp_path) == before
    tool(official, tmp_path / 'there.pth', '--task', DENSE, '--force')
    assert len(state_dict_of(read_checkpoint(tmp_path / 'there.pth'))) == 224


def content(folder):
    """Each path in it, with a file's bytes and when it was written."""
    return {
        path: path.is_file() and (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob('*')
    }


def test_the_error_is_one_line_for_the_person_at_the_terminal(tmp_path):
    error = fail(
        'convert_checkpoint.py', tmp_path / 'absent.pth', tmp_path / 'x.pth', '--task=dense'
    )
    assert 'absent.pth does not exist' in error


# --- Files ------------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_full_disk_leaves_no_part_of_a_file_and_the_old_one_as_it_was(suffix, tmp_path):
    file = tmp_path / f'x.{suffix}'
    file.write_text('the old one')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(UserError, match=f'x.{suffix} cannot be written, is the disk full'):
            write_checkpoint(file, {'a': torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_text() == 'the old one'


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_files_hold_their_tensors_alone_read_anywhere_and_are_the_same_each_time(suffix, tmp_path):
    large = torch.arange(100_000.0).reshape(1000, 100)
    state = {'view': large[:, :2].T, 'tied': large[0], 'again': large[0], 'half': large[1].half()}
    meta = {'naming': 'gcvit_mm', 'classes': ['cat', 'dog']}
    files = [tmp_path / f'{name}.{suffix}' for name in ('one', 'another')]
    for file in files:
        write_checkpoint(file, state, meta)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size < 15_000
    (tmp_path / 'plain').write_text('')
    assert files[0].stat().st_mode == (tmp_path / 'plain').stat().st_mode
    content = read_checkpoint(files[0])
    assert content['meta'] == meta
    assert_same(content['state_dict'], state)
    if suffix == 'pth':
        assert_same(torch.load(files[0], weights_only=True)['state_dict'], state)
    else:
        with safe_open(files[0], 'pt') as file:
            assert file.metadata()['format'] == 'pt'

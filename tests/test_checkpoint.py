"""Weights go in, whatever their naming and windows, with an account of every tensor."""

import os
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from mmengine.logging import HistoryBuffer
from reference import official_state, write_official
from safetensors.torch import save_file

from gcvit_mm import GCViT
from gcvit_mm.errors import UserError
from gcvit_mm.weights.files import read_checkpoint
from gcvit_mm.weights.load import load_pretrained, resize_bias_table


@pytest.fixture
def official(tmp_path):
    return write_official(tmp_path / 'gcvit_1k_xxtiny.pth.tar', 'xxtiny')


def pretrained(arch: str, file: str, **options) -> dict:
    return dict(arch=arch, init_cfg=dict(type='Pretrained', checkpoint=file, **options))


# --- The report -------------------------------------------------------------------------------


def test_report_accounts_for_every_tensor_of_the_model_and_of_the_file(official):
    model = GCViT('xxtiny', window_size=(7, 9, 14, 7))
    report = load_pretrained(model, official)
    own, file = set(model.state_dict()), len(official_state('xxtiny'))
    assert len(report.loaded) + len(report.resized) + len(report.new) == len(own)
    assert len(report.loaded) + len(report.resized) + len(report.unused) == file
    assert {*report.loaded, *report.resized, *report.new} == own
    assert set(report.new) == {f'norm{i}.{p}' for i in range(3) for p in ('weight', 'bias')}
    assert set(report.unused) == {'head.weight', 'head.bias'}
    assert report.resized == [
        f'stages.1.blocks.{i}.attn.relative_position_bias_table' for i in range(2)
    ]
    assert re.search(r'2 bias tables resized, 6 newly initialised \(norm0', str(report))


def test_loading_twice_gives_the_same_weights_and_ones_own_file_loads_completely(
    official, tmp_path
):
    model = GCViT(**pretrained('xxtiny', official), window_size=8)
    model.init_weights()
    for suffix, save in (('pth', torch.save), ('safetensors', save_file)):
        file = str(tmp_path / f'ours.{suffix}')
        save(model.state_dict(), file)
        again = GCViT('xxtiny', window_size=8)
        report = load_pretrained(again, file)
        assert (report.new, report.unused, report.resized) == ([], [], [])
        for name, value in again.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])


def test_a_backbone_loads_out_of_a_whole_detector(official, tmp_path):
    source = GCViT(**pretrained('xxtiny', official))
    source.init_weights()
    detector = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    detector['neck.weight'] = torch.zeros(3)
    torch.save(dict(meta={}, state_dict=detector), tmp_path / 'detector.pth')
    for options in ({}, {'prefix': 'backbone.'}):
        model = GCViT('xxtiny')
        load_pretrained(model, str(tmp_path / 'detector.pth'), **options)
        assert torch.equal(model.stem.conv.weight, source.stem.conv.weight)


def test_timm_checkpoint_loads_through_init_cfg(tmp_path):
    reference = timm.create_model('gcvit_xxtiny', pretrained=False)
    save_file(reference.state_dict(), tmp_path / 'timm.safetensors')
    model = GCViT(**pretrained('xxtiny', str(tmp_path / 'timm.safetensors')))
    model.init_weights()
    assert torch.equal(model.stem.conv.weight, reference.stem.conv1.weight)
    assert torch.equal(model.stages[0].downsample.norm2.weight,
                       reference.stages[1].downsample.norm2.weight)  # fmt: skip


@pytest.mark.parametrize('source', [7, 14, 24])
@pytest.mark.parametrize('target', [1, 7, 8, 24, 32])
def test_bias_tables_resize_between_any_windows_and_keep_what_is_linear(source, target):
    axis = torch.linspace(-1, 1, 2 * source - 1)
    plane = (2 * axis[:, None] + axis[None, :]).flatten()
    table = resize_bias_table(torch.stack([plane, torch.full_like(plane, 0.5)], 1), target)
    assert table.shape == ((2 * target - 1) ** 2, 2)
    assert torch.allclose(table[:, 1], torch.full_like(table[:, 1], 0.5), atol=1e-6)
    if source == target:
        assert torch.allclose(table[:, 0], plane, atol=1e-6)
    grid = table[:, 0].reshape(2 * target - 1, -1)
    assert torch.allclose(grid, -grid.flip(0, 1), atol=1e-5)  # symmetry survives


# --- What is refused --------------------------------------------------------------------------


def test_another_variant_is_refused_and_both_are_named(official):
    for arch in ('xtiny', 'small'):
        with pytest.raises(UserError, match=f'GC ViT xxtiny.*GC ViT {arch}'):
            GCViT(**pretrained(arch, official)).init_weights()


def test_a_deeper_variant_is_not_silently_cut_down(tmp_path):
    file = write_official(tmp_path / 'xtiny.pth', 'xtiny')
    with pytest.raises(UserError, match=r'GC ViT xtiny.*GC ViT xxtiny'):
        GCViT(**pretrained('xxtiny', file)).init_weights()


def test_a_refused_file_changes_no_weight(tmp_path):
    model = GCViT('xxtiny')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError):
        load_pretrained(model, write_official(tmp_path / 'xtiny.pth', 'xtiny'))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_missing_tensors_are_an_error_unless_they_are_allowed_by_name(tmp_path):
    state = official_state('xxtiny')
    torch.save({k: v for k, v in state.items() if not k.startswith('levels.3')}, tmp_path / 'x.pth')
    file = str(tmp_path / 'x.pth')
    with pytest.raises(UserError, match='allow_missing'):
        GCViT(**pretrained('xxtiny', file)).init_weights()
    model = GCViT(**pretrained('xxtiny', file, allow_missing=['stages.3.']))
    model.init_weights()
    assert torch.equal(model.stem.conv.weight, state['patch_embed.proj.weight'])


def test_images_of_other_channels_take_the_rest_of_the_weights_by_name(official):
    options = pretrained('xxtiny', official, allow_missing=['stem.conv.'])
    GCViT(**options, in_channels=4).init_weights()
    with pytest.raises(UserError, match=r'stem\.conv\.weight'):
        GCViT(**pretrained('xxtiny', official), in_channels=4).init_weights()


def test_foreign_damaged_and_missing_files_are_named_with_what_is_wrong(official, tmp_path):
    foreign = timm.create_model('resnet18', pretrained=False).state_dict()
    torch.save(foreign, tmp_path / 'foreign.pth')
    content = Path(official).read_bytes()
    (tmp_path / 'truncated.pth').write_bytes(content[: len(content) // 2])
    (tmp_path / 'text.pth').write_text('<html>Not found</html>')
    (tmp_path / 'empty.pth').write_bytes(b'')
    (tmp_path / 'broken.safetensors').write_bytes(content[:100])
    torch.save({'epoch': 3}, tmp_path / 'no_tensors.pth')
    for name, message in {
        'foreign.pth': 'no GC ViT.*conv1.weight',
        'truncated.pth': 'truncated or damaged',
        'text.pth': 'not a checkpoint',
        'empty.pth': 'truncated or damaged',
        'broken.safetensors': 'truncated or damaged',
        'no_tensors.pth': 'no tensors',
        'absent.pth': 'does not exist',
    }.items():
        with pytest.raises(UserError, match=f'{name}.*{message}'):
            GCViT(**pretrained('xxtiny', str(tmp_path / name))).init_weights()


# --- Nothing in a file is executed ------------------------------------------------------------


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('how', ['zip', 'pickle'])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(how, wrapped, tmp_path):
    proof = tmp_path / 'proof'
    attack = Malicious(os.system, f'touch {proof}')
    content = {'state_dict': official_state('xxtiny'), 'args': attack} if wrapped else attack
    file = tmp_path / 'attack.pth'
    if how == 'zip':
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r'attack\.pth is (refused|not)'):
        GCViT(**pretrained('xxtiny', str(file))).init_weights()
    assert not proof.exists()


@pytest.mark.parametrize(
    'attack',
    [
        Malicious(getattr, Path, 'unlink'),
        Malicious(getattr, HistoryBuffer, '__init__'),
        Malicious(eval, '1'),
        Malicious(__import__, 'os'),
    ],
)
def test_builtin_functions_are_out_of_reach(attack, tmp_path):
    torch.save({'x': attack}, tmp_path / 'attack.pth')
    with pytest.raises(UserError, match=r'refused|not a checkpoint'):
        read_checkpoint(tmp_path / 'attack.pth')


def test_training_state_of_mmengine_can_be_read(tmp_path):
    log = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({'message_hub': {'loss': log}, 'state_dict': {}}, tmp_path / 'epoch_1.pth')
    read = read_checkpoint(tmp_path / 'epoch_1.pth')['message_hub']['loss']
    assert read.mean() == 1.5

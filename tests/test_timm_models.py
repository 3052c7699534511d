"""The backbone in timm computes what timm's own model does, and works in what builds on timm."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import timm
import torch
from command_line import ENVIRONMENT, ROOT
from reference import write_official

import gcvit_mm.timm_models  # noqa: F401  (registers)
from gcvit_mm import ARCHS

PAGE = (ROOT / 'docs/other_libraries.md').read_text()
EXAMPLES = re.findall(r'```python\n(.+?)```', PAGE, re.DOTALL)
LIBRARIES = ('transformers', 'segmentation_models_pytorch', 'timm')


@pytest.mark.slow
@pytest.mark.parametrize('example', EXAMPLES, ids=lambda code: code.split()[1])
def test_an_example_of_the_page_runs(example):
    for library in LIBRARIES:
        if library in example and not find_spec(library):
            pytest.skip(f'{library} is not installed: pip install {library}')
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', example],
        env={**ENVIRONMENT, 'PYTHONPATH': path, 'HF_HUB_OFFLINE': '1'},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    'name', ['gcvit_xxtiny', pytest.param('gcvit_small', marks=pytest.mark.slow)]
)
def test_outputs_at_224_are_those_of_timms_model(name, tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    settings = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'theirs.pth')))
    ours = timm.create_model(f'{name}.any', num_classes=7, **settings).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            ours.forward_features(x), theirs.forward_features(x), atol=1e-4, rtol=1e-4
        )
        pyramid = timm.create_model(f'{name}.any', features_only=True, **settings).eval()
        reference = timm.create_model(name, features_only=True).eval()
        state = {k.replace('stages.', 'stages_'): v for k, v in theirs.state_dict().items()}
        reference.load_state_dict(state, strict=False)
        for got, expected in zip(pyramid(x), reference(x), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert pyramid.feature_info.channels() == reference.feature_info.channels()
    assert pyramid.feature_info.reduction() == reference.feature_info.reduction()


def test_any_size_windows_channels_and_stages():
    model = timm.create_model(
        'gcvit_xxtiny.any', features_only=True, out_indices=(-3, 2), window_size=(4, 4, 8, 4),
        in_chans=5,
    )  # fmt: skip
    maps = model(torch.zeros(2, 5, 70, 33))
    assert [tuple(x.shape) for x in maps] == [(2, 128, 9, 5), (2, 256, 5, 3)]
    assert model.feature_info.channels() == [128, 256]
    sum(x.sum() for x in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_classifier_is_replaced_as_in_timm():
    model = timm.create_model('gcvit_xxtiny.any', num_classes=3, img_size=None)
    assert model(torch.zeros(1, 3, 40, 50)).shape == (1, 3)
    model.reset_classifier(0)
    assert model(torch.zeros(1, 3, 40, 50)).shape == (1, model.num_features)
    data = timm.data.resolve_model_data_config(model)
    theirs = timm.data.resolve_model_data_config(timm.create_model('gcvit_xxtiny'))
    assert data == theirs


def test_official_weights_load_with_their_classifier(tmp_path):
    file = write_official(tmp_path / 'official.pth.tar', 'xxtiny')
    settings = dict(pretrained=True, pretrained_cfg_overlay=dict(file=file))
    model = timm.create_model('gcvit_xxtiny.any', **settings)
    state = torch.load(file, weights_only=False)['state_dict']
    assert torch.equal(model.get_classifier().weight, state['head.weight'])
    other = timm.create_model('gcvit_xxtiny.any', num_classes=2, window_size=8, **settings)
    assert torch.equal(other.stem.conv.weight, state['patch_embed.proj.weight'])


def test_timms_own_models_stay_what_they_are():
    from timm.models.gcvit import GlobalContextVit

    for name in ('gcvit_tiny', 'gcvit_tiny.in1k'):
        with torch.device('meta'):
            model = timm.create_model(name)
        assert isinstance(model, GlobalContextVit)
    assert model.pretrained_cfg['tag'] == 'in1k' and model.pretrained_cfg['url']
    assert {f'gcvit_{arch}' for arch in ARCHS} <= set(timm.list_models())


def test_importing_the_package_does_not_import_timm():
    code = "import gcvit_mm, sys; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True, env=ENVIRONMENT)

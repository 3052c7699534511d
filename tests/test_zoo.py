"""The list of models, the table of docs/models.md and the configs say the same."""

import ast
import re

import pytest
import torch
import yaml
from command_line import ROOT, succeed
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import gcvit_mm  # noqa: F401  (registers, and mmdet needs mmcv's operations)

ENTRIES = {
    model['Name']: model
    for model in yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())['Models']
}


def test_every_config_is_listed_once_and_exists():
    assert sorted(ENTRIES) == sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
    for name, model in ENTRIES.items():
        assert model['Config'] == f'configs/{name}.py'


def test_model_index_names_the_list():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index == {'Import': ['configs/metafile.yml']}


@pytest.mark.parametrize('name', ENTRIES)
def test_parameters_schedule_and_published_figures_are_those_of_the_config(name):
    data = ENTRIES[name]['Metadata']
    path = ROOT / 'configs' / f'{name}.py'
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == data['Parameters']
    loop = cfg.train_cfg
    length = loop.get('max_iters') or loop.max_epochs
    assert data['Schedule'] == f'{length} {"iterations" if "max_iters" in loop else "epochs"}'
    paper = re.search(r'^Paper: (.*)$', ast.get_docstring(ast.parse(path.read_text())), re.M)
    said = re.findall(r'(box AP|mask AP|mIoU|top-1) ([\d.]+)', paper[1] if paper else '')
    assert dict(said) == {k: f'{v:.1f}' for k, v in data.get('Published', {}).items()}


def test_the_table_of_models_is_the_one_written_from_the_list():
    succeed('zoo_table.py', '--check')

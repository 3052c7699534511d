"""Configs are formatted as code that means the same, in a time that grows with their length."""

from pathlib import Path

import pytest
from command_line import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from gcvit_mm.compat.config_format import format_code, install

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | st.text() | NUMBERS
KEYS = st.text() | st.integers()
VALUES = st.recursive(
    LEAVES,
    lambda own: st.lists(own) | st.lists(own).map(tuple) | st.dictionaries(KEYS, own),
)


def values(code: str) -> dict:
    names: dict = {}
    exec(code, names)
    names.pop('__builtins__')
    return names


@settings(deadline=None)
@given(VALUES)
def test_any_value_stays_what_it_is(value):
    code = format_code(f'value = {value!r}\n')
    assert repr(values(code)['value']) == repr(value)


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_the_configs_stay_what_they_are_and_fit_the_width(config, monkeypatch):
    cfg = Config.fromfile(config, import_custom_modules=False)
    before = values(cfg.pretty_text)
    monkeypatch.setattr(Config, 'pretty_text', Config.pretty_text)
    install()
    text = cfg.pretty_text
    assert values(text) == before
    assert max(map(len, text.splitlines())) <= 100


def test_long_paths_take_no_longer(monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', Config.pretty_text)
    install()
    name = '/'.join(['a folder with a long name'] * 8)
    entry = dict(type='X', ann_file=name, data_root=name, inner=dict(file=name, files=[name] * 3))
    cfg = Config(dict(data=[dict(entry, more=entry) for _ in range(20)]))
    assert values(cfg.pretty_text)['data'] == cfg.to_dict()['data']  # yapf needs minutes


def test_a_dumped_config_can_be_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', Config.pretty_text)
    install()
    cfg = Config.fromfile(CONFIGS[0], import_custom_modules=False)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()

"""The command lines of all tools stay as they are: scripts of other people use them."""

import json
from pathlib import Path

import pytest
from command_line import ROOT, call

USAGES = json.loads(Path(__file__).with_name('usages.json').read_text())
TOOLS = sorted(path.stem for path in (ROOT / 'tools').glob('[!_]*.py'))


@pytest.mark.parametrize('tool', TOOLS)
def test_a_tool_has_the_options_that_it_had(tool):
    """What is new goes into usages.json; what is gone breaks scripts."""
    usage = call(f'{tool}.py', '--help').stdout.split('\n\n')[0]
    assert usage.split() == USAGES[tool].split()

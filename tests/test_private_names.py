"""What the package reaches into in other packages: docs/extending.md lists all of it."""

import ast
import inspect
import re
from importlib import import_module

import pytest
from command_line import ROOT

import gcvit_mm  # noqa: F401  (offers mmcv._ext)

LIST = (ROOT / 'docs/extending.md').read_text().split('## What the package reaches into')[1]
NAMES = [
    name
    for row in re.findall(r'^\| (`.*?) \|', LIST, re.MULTILINE)
    for name in re.findall('`(.+?)`', row)
]
OF_PYTHON = {'_exit', '_getframe', '_asdict', '_replace'}
"""Of the standard library, where they are documented."""


@pytest.mark.parametrize('name', NAMES)
def test_what_is_listed_is_there(name):
    if 'roi_align' in name:
        import torchvision  # noqa: F401  (registers its operators)
    parts = name.split('.')
    for count in range(len(parts), 0, -1):
        try:
            holder = import_module('.'.join(parts[:count]))
            break
        except ImportError:
            continue
    for part in parts[count:]:
        if inspect.isclass(holder) and not hasattr(holder, part):
            # Set in __init__, of the class or of a base.
            sources = map(inspect.getsource, holder.__mro__[:-1])
            assert any(f'self.{part}' in source for source in sources), f'{name} is gone'
            return
        assert hasattr(holder, part), f'{name} is gone'
        holder = getattr(holder, part)


def test_no_other_private_name_is_used():
    own, used = set(), {}
    for path in [*(ROOT / 'gcvit_mm').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                is_self = isinstance(node.value, ast.Name) and node.value.id in ('self', 'cls')
                if isinstance(node.ctx, ast.Store) and is_self:
                    own.add(node.attr)
                used.setdefault(node.attr, f'{path.name}:{node.lineno}')
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [f'{node.module}.{alias.name}' for alias in node.names]
                for part in '.'.join(modules).split('.'):
                    used.setdefault(part, f'{path.name}:{node.lineno}')
    own |= {'_package', '_dist_run'} | OF_PYTHON
    listed = {part for name in NAMES for part in name.split('.')}
    private = {name for name in used if name.startswith('_') and not name.startswith('__')}
    missing = {name: used[name] for name in private - own - listed}
    assert not missing, 'docs/extending.md does not list them'

"""What may import what in the package, and how large its parts may be."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from command_line import ROOT

PACKAGE = ROOT / 'gcvit_mm'
CORE = ('models', 'weights', 'compat', 'config', 'fileio', 'errors', 'zoo', 'choices', 'version')
"""What other people's code uses of the package: it needs nothing else of it."""
KERNELS = 'models.kernels'
REPLAYS = {'drawing.model_inputs', 'register'}
"""What shows a training's own batches, and what registers everything."""


def modules() -> dict[str, Path]:
    """The modules of the package by their names in it; that of the package itself is ''."""
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


MODULES = modules()


def imports() -> dict[str, set[str]]:
    """What each module imports of the package, late imports too, those for type checkers not."""
    found = defaultdict(set)
    for name, path in MODULES.items():
        package = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]
        package = [part for part in package if part]
        tree = ast.parse(path.read_text())
        for_types = {
            id(node)
            for test in ast.walk(tree)
            if isinstance(test, ast.If) and getattr(test.test, 'id', '') == 'TYPE_CHECKING'
            for node in ast.walk(test)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or id(node) in for_types:
                continue
            if node.level:
                base = package[: len(package) - node.level + 1]
            elif (node.module or '').split('.')[0] == 'gcvit_mm':
                base = []
            else:
                continue
            base += [
                part for part in (node.module or '').split('.') if part not in ('', 'gcvit_mm')
            ]
            for alias in node.names:
                inner = '.'.join([*base, alias.name])
                found[name].add(inner if inner in MODULES else '.'.join(base))
    return found


IMPORTS = imports()


def room(module: str) -> str:
    return module.split('.')[0]


def test_the_core_imports_nothing_else_of_the_package():
    outside = {
        (module, other)
        for module, others in IMPORTS.items()
        if room(module) in CORE
        for other in others
        if room(other) not in CORE
    }
    assert not outside


def test_only_what_replays_a_training_imports_the_engine():
    importers = {
        module
        for module, others in IMPORTS.items()
        if any(room(other) == 'engine' for other in others) and room(module) != 'engine'
    }
    assert importers <= REPLAYS


def test_no_module_imports_the_tools():
    text = {name: path.read_text() for name, path in MODULES.items()}
    assert not [name for name, code in text.items() if 'import tools' in code]


def test_no_imports_go_in_a_circle():
    graph = {name: IMPORTS.get(name, set()) - {''} for name in MODULES if name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, ' -> '.join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(('rooms', 'most'), [(CORE, 5020), (None, 23850)], ids=['core', 'all'])
def test_lines_stay_in_the_budget(rooms, most):
    counts = {
        name: len(path.read_text().splitlines())
        for name, path in MODULES.items()
        if (rooms is None or room(name) in rooms) and not name.startswith(KERNELS)
    }
    assert sum(counts.values()) <= most


def test_no_module_is_longer_than_450_lines():
    long = {
        name: count
        for name, path in MODULES.items()
        if (count := len(path.read_text().splitlines())) > 450 and not name.startswith(KERNELS)
    }
    assert not long

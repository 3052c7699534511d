"""Import of data sets without their whole package, which takes seconds."""

import ast
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...choices import SPLITS
from ...config import datasets_of, import_custom_modules


def import_datasets(cfg: Config) -> None:
    """Register the data sets of a config; only for processes that need nothing else.

    mmdet, mmseg and mmpretrain import all transforms, models and plotting with any of their data
    sets. If all data sets of a config come from its package, only their modules are imported, into
    otherwise empty packages; if not, the whole package is imported.
    """
    scope, custom = cfg.get('default_scope'), (cfg.get('custom_imports') or {}).get('imports', [])
    types = {data.type for split in SPLITS for data in datasets_of(cfg.get(f'{split}_dataloader'))}
    foreign = [name for name in custom if name.split('.')[0] not in ('gcvit_mm', scope)]
    homes = _homes(scope) if scope and not foreign else {}
    if not types <= homes.keys():
        import_custom_modules(cfg)
        return
    packages: dict[str, Any] = {}
    for name in (scope, f'{scope}.datasets'):
        packages[name] = find_spec(name)
        sys.modules[name] = module_from_spec(packages[name])
    try:
        for kind in types:
            import_module(f'{scope}.datasets.{homes[kind]}')
    except ImportError:  # the data set needs other parts of its package
        for name, spec in packages.items():
            spec.loader.exec_module(sys.modules[name])


def _homes(scope: str) -> dict[str, str]:
    """The module of each data set, according to the ``__init__`` of the package."""
    spec = find_spec(scope)
    if spec is None or not spec.submodule_search_locations:
        return {}
    file = Path(spec.submodule_search_locations[0], 'datasets', '__init__.py')
    if not file.is_file():
        return {}
    return {
        alias.name: node.module
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }

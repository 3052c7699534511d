"""A substitute for mmcv's compiled extension ``mmcv._ext``.

``mmcv.ops`` imports the binary module ``mmcv._ext``, which the pure Python wheels of mmcv lack.
``gcvit_mm.compat.mmcv_ops`` implements its operations, and is imported when they are needed. A
compiled ``mmcv._ext`` has priority.
"""

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from ..errors import UserError

NAME = 'mmcv._ext'


def install() -> None:
    """Provide the substitute for ``mmcv._ext``; call it before anything imports ``mmcv.ops``.

    Unless mmcv has been imported, this function imports nothing. Calling it again does nothing.
    Modules whose ``try: from mmcv.ops import ...`` has failed before get the missing names.

    Raises:
        UserError: ``mmcv.ops`` has been imported without its extension, or a class has been derived
            from the placeholder of an operation.
    """
    if STAND_IN in sys.meta_path:
        return
    failed = []
    if 'mmcv' in sys.modules and NAME not in sys.modules and not importlib.util.find_spec(NAME):
        if 'mmcv.ops' in sys.modules:
            raise UserError(
                'mmcv.ops is already loaded, without mmcv._ext: import gcvit_mm before it, or put '
                'gcvit_mm first in custom_imports'
            )
        failed = list(_failed_imports())
        for module, statement in failed:
            _check_repairable(module, statement)
    # At the end, so that other finders can find a compiled extension first.
    sys.meta_path.append(STAND_IN)
    for module, statement in failed:
        _repair(module, statement)


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder and loader of the module ``mmcv._ext``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin='gcvit_mm.compat.mmcv_ops')

    def exec_module(self, module: ModuleType) -> None:
        importlib.import_module('gcvit_mm.compat.mmcv_ops').fill(module)


# Late installation: modules that tried `mmcv.ops` before it could be imported ------------------


def _failed_imports() -> Iterator[tuple[ModuleType, ast.ImportFrom]]:
    """Yield each import of a failed ``try: from mmcv.ops import ...``.

    OpenMMLab's packages, recognised by their prefix ``mm``, have such blocks at module level. A
    block may have more imports, which were skipped after the first one failed.
    """
    for name, module in list(sys.modules.items()):
        loader = getattr(module, '__loader__', None)
        if not name.startswith('mm') or not isinstance(loader, importlib.abc.InspectLoader):
            continue
        source = loader.get_source(module.__name__) or ''
        if 'mmcv.ops' not in source:
            continue
        for block in ast.parse(source).body:
            if isinstance(block, ast.Try):
                imports = [line for line in block.body if isinstance(line, ast.ImportFrom)]
                if any((line.module or '').startswith('mmcv.ops') for line in imports):
                    yield from ((module, line) for line in imports)


def _check_repairable(module: ModuleType, statement: ast.ImportFrom) -> None:
    for alias in statement.names:
        placeholder = getattr(module, alias.asname or alias.name, None)
        own = getattr(placeholder, '__module__', None) == module.__name__
        if own and isinstance(placeholder, type) and placeholder.__subclasses__():
            raise UserError(
                f'{module.__name__} was imported before gcvit_mm and derives classes from a '
                f'placeholder of {statement.module}.{alias.name}: import gcvit_mm first, or put '
                'it first in custom_imports'
            )


def _repair(module: ModuleType, statement: ast.ImportFrom) -> None:
    # A name that this mmcv does not have keeps its placeholder.
    with contextlib.suppress(ImportError, AttributeError):
        relative_name = '.' * statement.level + (statement.module or '')
        source = importlib.import_module(relative_name, module.__package__)
        for alias in statement.names:
            setattr(module, alias.asname or alias.name, getattr(source, alias.name))


STAND_IN = _StandIn()

"""What is to be done as soon as mmengine is imported, after gcvit_mm or before it."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from . import environment

Action = Callable[[], object]


def install() -> None:
    """Have GC ViT registered in time, without an import of mmengine or torch here."""
    after('mmengine', _prepare_mmengine)
    after('mmengine.model', _register_backbone)


def after(name: str, action: Action) -> None:
    """Call ``action`` when a module has been imported: now, or as the last step of its import.

    Args:
        name: One of mmengine's modules.
        action: It is called again where it raises, at the next attempt to import the module.

    Raises:
        ImportError: The environment is broken (``environment.check``); raised by the import of the
            module where that is still to come.
    """
    if name in sys.modules:
        environment.check()
        action()
    elif action not in _FINDER.waiting.setdefault(name, []):
        _FINDER.waiting[name].append(action)
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are waited for as the other finders do, and notices their import."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Action]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                environment.check()
                execute(module)
                for action in self.waiting.get(fullname, ()):
                    action()
                self.waiting.pop(fullname, None)

            # The loader itself stays: it also serves the module's source and resources.
            vars(spec.loader)['exec_module'] = exec_module
        return spec


_FINDER = _Finder()


def _prepare_mmengine() -> None:
    environment.let_mmengine_find_mmseg()
    registry = import_module('mmengine.registry').MODELS
    # For who looks up a name before mmengine.model, which takes seconds, has been imported.
    if 'gcvit_mm.models' not in registry._locations:
        registry._locations.append('gcvit_mm.models')


def _register_backbone() -> None:
    import_module('gcvit_mm.models')

"""Actions upon the import of mmengine, whether it happens before or after that of gcvit_mm."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from . import environment, mmdet_dino

Action = Callable[[], object]


def install() -> None:
    """Arrange the registration of GC ViT without importing mmengine or torch."""
    after('mmengine', _prepare_mmengine)
    after('mmengine.model', _register_backbone)
    after(mmdet_dino.MODULE, mmdet_dino.widen_on_loading)
    after('mmcv.ops.multi_scale_deform_attn', _keep_float32)
    after('mmpretrain.utils.dependency', _leave_out_multimodal_models)


def after(name: str, action: Action) -> None:
    """Call ``action`` after the import of a module: now, or as the last step of a later import.

    If it raises, the next import of the module calls it again.

    Raises:
        ImportError: The environment is broken (see ``environment.check``); raised by the import of
            the module if it is not imported yet.
    """
    if name in sys.modules:
        environment.check()
        action()
    elif action not in _FINDER.waiting.setdefault(name, []):
        _FINDER.waiting[name].append(action)
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds awaited modules by the other finders, and runs actions after their import."""

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

            # The loader is not replaced, because it also provides source code and resources.
            vars(spec.loader)['exec_module'] = exec_module
        return spec


_FINDER = _Finder()


def _prepare_mmengine() -> None:
    environment.let_mmengine_find_mmseg()
    environment.let_mmengine_find_configs()
    registry = import_module('mmengine.registry').MODELS
    # For lookups before the import of mmengine.model, which takes seconds.
    if 'gcvit_mm.models' not in registry._locations:
        registry._locations.append('gcvit_mm.models')


def _register_backbone() -> None:
    import_module('gcvit_mm.models')


def _keep_float32() -> None:
    import_module('gcvit_mm.compat.deformable').keep_float32()


def _leave_out_multimodal_models() -> None:
    """Let mmpretrain be imported beside transformers 5, which lacks what its BLIP needs."""
    dependency: Any = import_module('mmpretrain.utils.dependency')
    if dependency.satisfy_requirement('transformers>=5.0.0.dev0'):
        dependency.WITH_MULTIMODAL = False

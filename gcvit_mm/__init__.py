"""GC ViT for detection and segmentation on OpenMMLab.

Importing this package is fast and works in any environment. ``GCViT`` is registered when mmengine's
models are imported, and missing packages are reported when they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .compat import environment, mmcv_extension, on_import
from .version import __version__

if TYPE_CHECKING:
    from .fitting.run import fit
    from .inference import Predictor
    from .models import ARCHS, GCViT

__all__ = ['ARCHS', 'GCViT', 'Predictor', '__version__', 'fit']

_MODULES = {'ARCHS': 'models', 'GCViT': 'models', 'Predictor': 'inference', 'fit': 'fitting.run'}

mmcv_extension.install()  # before anything imports mmcv.ops
on_import.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    environment.check()
    return getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

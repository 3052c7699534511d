"""GC ViT for detection and segmentation on OpenMMLab."""

# ruff: noqa: E402
from typing import TYPE_CHECKING, Any

from . import environment

environment.check()  # before the first import that a broken environment would fail
environment.let_mmengine_find_mmseg()

from . import mmcv_ops

mmcv_ops.install()  # before anything imports mmcv.ops

from .models import ARCHS, GCViT
from .version import __version__

if TYPE_CHECKING:
    from .inference import Predictor

__all__ = ['ARCHS', 'GCViT', 'Predictor', '__version__']


def __getattr__(name: str) -> Any:
    if name == 'Predictor':  # at its first use: it needs more of mmengine than the backbone does
        from .inference import Predictor

        return Predictor
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

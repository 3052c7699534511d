"""GC ViT for detection and segmentation on OpenMMLab."""

# ruff: noqa: E402
from . import environment

environment.check()  # before the first import that a broken environment would fail
environment.let_mmengine_find_mmseg()

from . import mmcv_ops

mmcv_ops.install()  # before anything imports mmcv.ops

from .models import ARCHS, GCViT
from .version import __version__

__all__ = ['ARCHS', 'GCViT', '__version__']

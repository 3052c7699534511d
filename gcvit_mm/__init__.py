"""GC ViT for detection and segmentation on OpenMMLab."""

from . import environment, mmcv_ops

# Before anything that needs them: clear errors for a broken environment, and mmcv's operations
# where they were not compiled.
environment.check()
mmcv_ops.install()

from .models import ARCHS, GCViT  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['ARCHS', 'GCViT', '__version__']

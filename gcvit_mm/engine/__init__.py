"""What ``tools/`` is made of: launching, checks before the start, hooks; importing registers."""

from .checkpoint_guard_hook import CheckpointGuardHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .progress_bar_hook import ProgressBarHook
from .run_summary_hook import RunSummaryHook

__all__ = [
    'CheckpointGuardHook',
    'LayerDecayOptimWrapperConstructor',
    'ProgressBarHook',
    'RunSummaryHook',
]

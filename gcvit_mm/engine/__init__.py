"""What ``tools/`` is made of: launching, checks before the start, hooks; importing registers."""

from .checkpoint_guard_hook import CheckpointGuardHook
from .data_time_hook import DataTimeHook
from .grouped import GroupedOptimWrapperConstructor
from .layer_decay import LayerDecayOptimWrapperConstructor
from .progress_bar_hook import ProgressBarHook
from .run_summary_hook import RunSummaryHook

__all__ = [
    'CheckpointGuardHook',
    'DataTimeHook',
    'GroupedOptimWrapperConstructor',
    'LayerDecayOptimWrapperConstructor',
    'ProgressBarHook',
    'RunSummaryHook',
]

"""What ``tools/`` is made of: launching, checks before the start, hooks; importing registers."""

from .checkpoint_guard_hook import CheckpointGuardHook
from .data_time_hook import DataTimeHook
from .grouped import GroupedOptimWrapperConstructor
from .guarded import GuardedAmpOptimWrapper, GuardedOptimWrapper, NonFiniteHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .loops import ExactEpochBasedTrainLoop, ExactIterBasedTrainLoop
from .preemption_hook import PreemptionHook
from .progress_bar_hook import ProgressBarHook
from .run_summary_hook import RunSummaryHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .workers import init_worker

__all__ = [
    'CheckpointGuardHook',
    'DataTimeHook',
    'ExactEpochBasedTrainLoop',
    'ExactIterBasedTrainLoop',
    'GroupedOptimWrapperConstructor',
    'GuardedAmpOptimWrapper',
    'GuardedOptimWrapper',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteHook',
    'PreemptionHook',
    'ProgressBarHook',
    'RunSummaryHook',
    'SafeCheckpointHook',
    'init_worker',
]

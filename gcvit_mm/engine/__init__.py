"""Loops, optimizers, hooks and processes for training; importing this package registers them."""

from .hooks.checkpoint_guard_hook import CheckpointGuardHook
from .hooks.data_time_hook import DataTimeHook
from .hooks.evaluator_hook import EvaluatorHook
from .hooks.preemption_hook import PreemptionHook
from .hooks.progress_bar_hook import ProgressBarHook
from .hooks.run_summary_hook import RunSummaryHook
from .hooks.safe_checkpoint_hook import SafeCheckpointHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .loops import ExactEpochBasedTrainLoop, ExactIterBasedTrainLoop
from .non_finite import GuardedAmpOptimWrapper, GuardedOptimWrapper, NonFiniteHook
from .param_groups import GroupedOptimWrapperConstructor
from .seeded_data import SeededBatchSampler, SeededDataset
from .workers import init_worker

__all__ = [
    'CheckpointGuardHook',
    'DataTimeHook',
    'EvaluatorHook',
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
    'SeededBatchSampler',
    'SeededDataset',
    'init_worker',
]

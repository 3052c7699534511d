"""The hooks of every config, in all tools that train or test."""

gcvit_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3),
    non_finite=dict(type='NonFiniteHook'),
    run_summary=dict(type='RunSummaryHook'),
    data_time=dict(type='DataTimeHook'),
    progress_bar=dict(type='ProgressBarHook'),
    checkpoint_guard=dict(type='CheckpointGuardHook'),
    evaluator=dict(type='EvaluatorHook'),
    preemption=dict(type='PreemptionHook'),
)

"""A hook that checks the evaluators of a run before its first step."""

from typing import Any

from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...evaluation.metrics import full_name, repair_coco_metric

EARLY_STOPPING = 'early_stopping'
"""Key of a checkpoint: the count of validations and the best score of each such hook."""


@HOOKS.register_module()
class EvaluatorHook(Hook):
    """Repairs mmdet's ``CocoMetric``, and refuses names of metrics that no evaluator gives.

    ``save_best`` of the checkpoint hook and ``monitor`` of hooks and schedulers have such names; a
    missing prefix such as 'coco/' is added. Checkpoints get the state of ``EarlyStoppingHook``.
    """

    def before_run(self, runner: Runner) -> None:
        """Check the evaluators.

        Raises:
            UserError: A setting names a metric that no evaluator gives.
        """
        for loop in (runner._val_loop, runner._test_loop):
            for metric in _metrics_of(loop):
                repair_coco_metric(metric)
        metrics = _metrics_of(runner._val_loop)
        if not metrics:
            return
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.save_best:
                option = 'default_hooks.checkpoint.save_best'
                names = [
                    name if name == 'auto' else full_name(name, metrics, option)
                    for name in hook.key_indicators
                ]
                if names != hook.key_indicators:
                    hook._init_rule(hook.rules, names)
        schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
        for item in (*runner.hooks, *schedulers):
            if isinstance(name := getattr(item, 'monitor', None), str):
                item.monitor = full_name(name, metrics, f'{type(item).__name__}.monitor')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the state of mmengine's ``EarlyStoppingHook``, which has no part in checkpoints."""
        states = [(hook.wait_count, float(hook.best_score)) for hook in _early(runner)]
        if states:
            checkpoint[EARLY_STOPPING] = states

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the state of ``EarlyStoppingHook`` in a resumed training."""
        states = checkpoint.get(EARLY_STOPPING, []) if runner._resume else []
        for hook, (count, score) in zip(_early(runner), states, strict=False):
            hook.wait_count, hook.best_score = int(count), float(score)


def _early(runner: Runner) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _metrics_of(loop: Any) -> list:
    """The metrics of a loop; none if it is not built."""
    return getattr(getattr(loop, 'evaluator', None), 'metrics', [])

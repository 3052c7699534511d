"""A hook whose checkpoints survive crashes, kills and full disks."""

import math
import os
import re
import sys
from logging import FileHandler
from pathlib import Path
from typing import Any, Literal

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...errors import ArgumentError, UserError
from ...fileio import atomic_write

KEPT = 'kept_checkpoints'
"""Key of the message hub for the list of checkpoints that ``max_keep_ckpts`` counts."""


@register_backend('whole_file')
class WholeFileBackend(LocalBackend):
    """mmengine's backend for local files, with atomic writes."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write a file; an existing one is replaced once the new one is on the disk."""
        path = os.fspath(filepath)
        try:
            os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        except OSError as error:
            raise UserError(f'{path} cannot be written ({error})') from error
        with atomic_write(path) as file:
            file.write(obj)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with atomic writes: a run always has a whole checkpoint.

    A checkpoint is written to a temporary file, flushed to the disk and renamed; older checkpoints
    are then removed. The file ``last_checkpoint`` holds its name, relative to their folder.

    Args:
        interval: Epochs or iterations between checkpoints; -1 saves only the last.
        by_epoch: Whether ``interval`` counts epochs.
        save_optimizer: Save the state of the optimizer, which resuming needs.
        save_param_scheduler: Save the state of the parameter schedulers.
        out_dir: Folder for the checkpoints, to which the name of the work directory is appended;
            None takes the work directory.
        max_keep_ckpts: Number of checkpoints to keep besides the best; -1 keeps all.
        save_last: Save after the last epoch or iteration too.
        save_best: The metric, or metrics, whose best checkpoint is kept.
        rule: 'greater' or 'less' for each metric; None infers it from the name of the metric.
        filename_tmpl: Name of a file, with {} for the epoch or iteration.
        save_begin: The first epoch or iteration after which to save.
        backend_args: Arguments of mmengine's file backend; None writes local files atomically.
        on_failure: 'stop' the training if a checkpoint or the log cannot be written, or print an
            error and 'continue'.
    """

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        out_dir: str | None = None,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | list[str] | None = None,
        rule: str | list[str] | None = None,
        filename_tmpl: str | None = None,
        save_begin: int = 0,
        backend_args: dict | None = None,
        on_failure: Literal['stop', 'continue'] = 'stop',
    ) -> None:
        counts = dict(interval=interval, max_keep_ckpts=max_keep_ckpts, save_begin=save_begin)
        for name, value in counts.items():
            if not isinstance(value, int):
                raise ArgumentError(f'default_hooks.checkpoint.{name}={value}: pass an integer')
        if on_failure not in ('stop', 'continue'):
            name = 'default_hooks.checkpoint.on_failure'
            raise ArgumentError(f"{name}={on_failure}: pass 'stop' or 'continue'")
        super().__init__(
            interval=interval,
            by_epoch=by_epoch,
            save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler,
            out_dir=out_dir,
            max_keep_ckpts=max_keep_ckpts,
            save_last=save_last,
            save_best=save_best,
            rule=rule,
            filename_tmpl=filename_tmpl,
            save_begin=save_begin,
            backend_args=backend_args or dict(backend='whole_file'),
        )
        self.on_failure = on_failure
        self.misses_log = False
        self.saved_iter = -1  # number of iterations before the latest checkpoint

    def before_run(self, runner: Runner) -> None:
        """Let the log fail as checkpoints do."""
        if self.on_failure == 'continue':
            for handler in runner.logger.handlers:
                if isinstance(handler, FileHandler):
                    handler.handleError = self._miss_log  # type: ignore[method-assign]
            add_scalars = runner.visualizer.add_scalars

            def add_or_miss(*args: Any, **kwargs: Any) -> None:
                try:
                    add_scalars(*args, **kwargs)
                except OSError:
                    self._miss_log()

            runner.visualizer.add_scalars = add_or_miss

    def _miss_log(self, record: Any = None) -> None:
        if not self.misses_log:
            self.misses_log = True
            reason = f'the log cannot be written ({sys.exception()})'
            print(f'warning: {reason}; training continues without its lines', file=sys.stderr)

    def before_train(self, runner: Runner) -> None:
        """Remove unfinished files of an earlier run."""
        # mmengine's hook would remove the files that this list in a checkpoint names.
        runner.message_hub.runtime_info.pop('keep_ckpt_ids', None)
        super().before_train(runner)
        if is_main_process():
            for path in Path(str(self.out_dir)).glob('*.tmp'):
                if re.search(r'\.pth\.\d+\.tmp$', path.name):
                    path.unlink(missing_ok=True)

    def save_now(self, runner: Runner, step: int) -> str:
        """Save a checkpoint, unless there is one of this step.

        Args:
            runner: The runner.
            step: Number of finished steps.

        Returns:
            Name of the checkpoint file; '' if it cannot be written and the training continues.
        """
        if self.saved_iter != step:
            self._save(runner, f'iter_{step}.pth', dict(epoch=runner.epoch, iter=step))
        return os.path.basename(str(self.last_ckpt)) if self.saved_iter == step else ''

    # mmengine's hook calls this method when a checkpoint is due.
    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self._save(runner, self.filename_tmpl.format(step), meta)

    def _save(self, runner: Runner, name: str, meta: dict) -> None:
        # In a resumed training the list comes from a file, so it is checked.
        before = runner.message_hub.runtime_info.get(KEPT)
        before = [other for other in before if self._is_own(other)] if type(before) is list else []
        kept = [*(other for other in before if other != name), name]
        outdated = kept[: -self.max_keep_ckpts] if self.max_keep_ckpts > 0 else []
        runner.message_hub.update_info(KEPT, kept[len(outdated) :])
        if not self._write(runner, name, meta, self.save_optimizer, self.save_param_scheduler):
            runner.message_hub.update_info(KEPT, before)
            return
        self.last_ckpt = self._path(name)
        self.saved_iter = meta['iter']
        if is_main_process():
            for other in outdated:
                self._remove(other)

    def _write(
        self, runner: Runner, name: str, meta: dict, optimizer: bool, schedules: bool
    ) -> bool:
        """Write a checkpoint; return False if that fails and ``on_failure`` is 'continue'."""
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                save_optimizer=optimizer,
                save_param_scheduler=schedules,
                meta=dict(meta),
                backend_args=self.backend_args,
            )
            if is_main_process() and optimizer:
                self.file_backend.put(name.encode(), self._path('last_checkpoint'))
        except UserError as error:
            if self.on_failure == 'stop':
                raise UserError(
                    f'{error}. Earlier checkpoints are intact: free disk space and use --resume. '
                    'To train without new ones, set default_hooks.checkpoint.on_failure=continue'
                ) from error
            runner.logger.error(f'{error}; training continues without this checkpoint')
            return False
        return True

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators and metrics:
            self._init_rule(self.rules, [next(iter(metrics))])
        missing = [key for key in self.key_indicators if key not in metrics]
        if missing:  # without a prediction, mmdet's metrics give nothing
            runner.logger.error(
                f'save_best: the evaluation gave no {", ".join(missing)}, only '
                f'{", ".join(metrics) or "nothing"}; no best checkpoint is saved'
            )
            return
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        steps = runner.epoch if self.by_epoch else runner.iter
        improved = [
            key for key in self.key_indicators if self._save_if_best(runner, metrics, key, meta)
        ]
        # A resumed training must know the best checkpoint.
        if improved and self.last_ckpt is not None:
            self._save_checkpoint_with_step(runner, steps, meta)

    def _save_if_best(self, runner: Runner, metrics: dict, key: str, meta: dict) -> bool:
        info = runner.message_hub.runtime_info
        suffix = '' if len(self.key_indicators) == 1 else f'_{key}'
        # In a resumed training the name comes from a file, and may be of another metric.
        previous = info.get(f'best_ckpt{suffix}')
        previous = os.path.basename(previous) if isinstance(previous, str) else ''
        known = self._is_own(previous, f'best_{key}_')
        score, best = metrics[key], info.get(f'best_score{suffix}') if known else None
        if score is None or math.isnan(score):
            return False
        if best is not None and not self.is_better_than[key](score, best):
            return False
        steps, unit = (runner.epoch, 'epoch') if self.by_epoch else (runner.iter, 'iter')
        name = f'best_{key}_{self.filename_tmpl.format(steps)}'.replace('/', '_')
        if not self._write(runner, name, meta, optimizer=False, schedules=False):
            return False
        runner.message_hub.update_info(f'best_score{suffix}', score)
        runner.message_hub.update_info(f'best_ckpt{suffix}', self._path(name))
        self._set_best(key, self._path(name))
        if known and previous != name and is_main_process():
            self._remove(previous)
        runner.logger.info(
            f'The best checkpoint with {score:0.4f} {key} at {steps} {unit} is saved to {name}.'
        )
        return True

    def _set_best(self, key: str, path: str) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path

    def _is_own(self, name: Any, best: str = '') -> bool:
        """Whether this hook names checkpoints so; names of best ones begin with ``best``."""
        ordinary = (self.filename_tmpl, 'iter_{}.pth')
        templates = [(best + self.filename_tmpl).replace('/', '_')] if best else ordinary
        patterns = [re.sub(r'\\{.*?\\}', '[0-9]+', re.escape(template)) for template in templates]
        return isinstance(name, str) and any(re.fullmatch(p, name) for p in patterns)

    def _path(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    def _remove(self, name: str) -> None:
        path = self._path(name)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)


def checkpoint_hook(runner: Any) -> SafeCheckpointHook | None:
    """The ``SafeCheckpointHook`` of a runner, or None."""
    return next((hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)), None)

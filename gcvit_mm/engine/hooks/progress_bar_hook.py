"""A hook that shows a progress bar in terminals."""

import sys
from contextlib import ExitStack
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Shows the progress of training and evaluation on stderr if it is a terminal.

    Log lines are printed above the bar; log files do not contain it.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._training = False
        self._stack = ExitStack()

    def before_run(self, runner: Runner) -> None:
        if sys.stderr.isatty():
            console = runner.logger.handlers[0]
            self._stack.enter_context(logging_redirect_tqdm([runner.logger]))
            # tqdm's handler replaces that of the console, but does not filter by level.
            runner.logger.handlers[-1].setLevel(console.level)

    def after_run(self, runner: Runner) -> None:
        self._stack.close()

    def before_train(self, runner: Runner) -> None:
        self._training = True
        self._open('train', runner.max_iters, runner.iter)

    def after_train(self, runner: Runner) -> None:
        self._training = False
        self._close()

    def before_val_epoch(self, runner: Runner) -> None:
        self._open('val', len(runner.val_dataloader))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._training:
            self._open('train', runner.max_iters, runner.iter)

    def before_test_epoch(self, runner: Runner) -> None:
        self._open('test', len(runner.test_dataloader))

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
        mode: str = 'train',
    ) -> None:
        if self._bar is not None:
            self._bar.update()
            if mode != 'train' and self._bar.n == self._bar.total:
                self._close()  # evaluators print to the console directly

    def _open(self, mode: str, total: int, initial: int = 0) -> None:
        self._close()
        # disable=None shows no bar if stderr is not a terminal.
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=mode,
            leave=False,
            disable=None if is_main_process() else True,
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

"""How much of a training's time the loading of data costs."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

WORTH_A_HINT = 0.1


@HOOKS.register_module()
class DataTimeHook(Hook):
    """Log the share of time in which the model waits for data, and sum it up at the end.

    Lines of the log get ``data_share``, from 0 to 1: mmengine's ``data_time`` over its ``time``.
    """

    priority = 'NORMAL'  # behind mmengine's timer, which was there before, and before the log

    def before_train(self, runner: Runner) -> None:
        self.waited = self.passed = 0.0

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        hub = runner.message_hub
        waited, passed = (hub.get_scalar(f'train/{name}') for name in ('data_time', 'time'))
        # The window of the log's other figures: a single iteration says little.
        window = runner.log_processor.window_size
        hub.update_scalar('train/data_share', waited.mean(window) / passed.mean(window))
        self.waited += waited.current()
        self.passed += passed.current()

    def after_train(self, runner: Runner) -> None:
        if not self.passed:
            return
        share = self.waited / self.passed
        workers = runner.train_dataloader.num_workers
        hint = f': more than its {workers} worker(s) would help' if share > WORTH_A_HINT else ''
        runner.logger.info(f'Waiting for data took {share:.1%} of the training time{hint}')

"""A hook that measures the time that training waits for data."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

WORTH_A_HINT = 0.1


@HOOKS.register_module()
class DataTimeHook(Hook):
    """Logs the share of the training time that the model waits for data.

    ``data_share``, from 0 to 1, is mmengine's ``data_time`` divided by ``time``. The share of the
    whole training is logged at its end.
    """

    priority = 'NORMAL'  # after mmengine's timer, which is registered earlier, and before the log

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
        # Average over as many iterations as the other values in the log.
        window = runner.log_processor.window_size
        hub.update_scalar('train/data_share', waited.mean(window) / passed.mean(window))
        self.waited += waited.current()
        self.passed += passed.current()

    def after_train(self, runner: Runner) -> None:
        if not self.passed:
            return
        share = self.waited / self.passed
        workers = runner.train_dataloader.num_workers
        hint = f': set num_workers above {workers}' if share > WORTH_A_HINT else ''
        runner.logger.info(f'Waiting for data took {share:.1%} of the training time{hint}')

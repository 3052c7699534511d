"""A look at a checkpoint before it is loaded into a model."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...errors import UserError
from ...weights.files import state_dict_of
from ...weights.load import mismatches


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuse a checkpoint of another model, which mmengine would load in part and only log.

    A config that is found in a checkpoint is not executed.

    Args:
        exact: Every tensor of the model must be in the file, as for a test. Otherwise, and where
            no training is resumed, half of them are enough: fine-tuning replaces heads.
    """

    def __init__(self, exact: bool) -> None:
        self.exact = exact

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Raises:
            UserError: The file does not fit.
        """
        # mmengine would execute it, to look up a number of GPUs.
        checkpoint.get('meta', {}).pop('config', None)
        source = runner._load_from or f'the latest in {runner.work_dir}'
        if runner._resume and 'message_hub' not in checkpoint:
            raise UserError(
                f'checkpoint {source} holds weights but no state of a training, as published and '
                'converted files do: start from it by --cfg-options load_from=FILE'
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        file = {k.removeprefix('module.'): v for k, v in state_dict_of(checkpoint).items()}
        own = [name for name in model.state_dict() if 'num_batches_tracked' not in name]
        unfit = mismatches(model, file)
        share = 1 - len(unfit) / len(own)
        if unfit and (self.exact or runner._resume or share < 0.5):
            raise UserError(
                f'checkpoint {source} does not fit the model: {len(unfit)} of {len(own)} tensors '
                f'are missing or of another shape ({", ".join(unfit[:3])}, ...). Use the config it '
                'was trained with; ImageNet weights go into model.backbone.init_cfg'
            )
        runner.logger.info(
            f'Checkpoint {source}: {len(own) - len(unfit)} of {len(own)} tensors fit, '
            f'{len(file.keys() - own)} left over'
        )

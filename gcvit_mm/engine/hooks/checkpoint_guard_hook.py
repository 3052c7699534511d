"""A check of a checkpoint before it is loaded into a model."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ...errors import UserError
from ...weights.files import state_dict_of
from ...weights.load import mismatches


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuse a checkpoint of another model, which mmengine would load in part and only log.

    A test, and a training that is resumed, need every tensor of the model. Half of the tensors are
    enough for fine-tuning, which replaces heads. A config in a checkpoint is not executed.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Raises:
            UserError: The file does not fit the model.
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
        missing = mismatches(model, file)
        trains = isinstance(runner._train_loop, BaseLoop)  # before a training it is a config
        if missing and (not trains or runner._resume or len(missing) > len(own) / 2):
            raise UserError(
                f'checkpoint {source} does not fit the model: {len(missing)} of {len(own)} tensors '
                f'are missing or of another shape ({", ".join(missing[:3])}, ...). Use the config '
                'it was trained with; ImageNet weights go into model.backbone.init_cfg'
            )
        runner.logger.info(
            f'Checkpoint {source}: {len(own) - len(missing)} of {len(own)} tensors fit, '
            f'{len(file.keys() - own)} are not used'
        )

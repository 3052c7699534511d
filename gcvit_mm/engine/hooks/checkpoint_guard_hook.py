"""A hook that checks whether a checkpoint fits the model."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ...errors import UserError
from ...training_state import check_training_state
from ...weights.files import state_dict_of
from ...weights.load import mismatches


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuses a checkpoint of another model, which mmengine would load in part and only log.

    Testing and resuming need every tensor of the model. Fine-tuning, which replaces heads, needs
    half of them. Configs in checkpoints are not executed.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which loads its part

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the names and shapes of the tensors with those of the model.

        Raises:
            UserError: The checkpoint does not fit the model.
        """
        source = runner._load_from or f'the latest in {runner.work_dir}'
        if runner._resume:
            try:
                check_training_state(checkpoint)
            except UserError as error:
                raise UserError(f'checkpoint {source}: {error}') from error
            # mmengine would execute the config to look up the number of GPUs.
            checkpoint['meta'].pop('config', None)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        file = {k.removeprefix('module.'): v for k, v in state_dict_of(checkpoint).items()}
        own = [name for name in model.state_dict() if 'num_batches_tracked' not in name]
        missing = mismatches(model, file)
        trains = isinstance(runner._train_loop, BaseLoop)  # not built before a run
        if missing and (not trains or runner._resume or len(missing) > len(own) / 2):
            raise UserError(
                f'checkpoint {source} does not fit the model: {len(missing)} of {len(own)} tensors '
                f'are missing or have another shape ({", ".join(missing[:3])}, ...). Use the '
                'config of its training; for ImageNet weights set model.backbone.init_cfg'
            )
        runner.logger.info(
            f'Checkpoint {source}: {len(own) - len(missing)} of {len(own)} tensors fit, '
            f'{len(file.keys() - own)} are not used'
            + f'. These start anew: {", ".join(missing)}'
            * bool(missing)
        )

"""Training whose parameters, gradients and optimizer state are spread over the processes."""

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..choices import FSDP_UNITS
from ..errors import UserError
from ..fsdp_units import fsdp_units


class ShardedRunner(Runner):
    """mmengine's ``Runner`` with PyTorch's fully sharded data parallelism (FSDP, ``fully_shard``).

    Checkpoints are those of a ``Runner``: each goes on from the other's, and with any number of
    processes. mmengine's own ``FSDPStrategy`` needs GPUs and another runner, and its checkpoints
    are of another form.
    """

    full: dict[str, Any]

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Initialise the model and spread it; mmengine calls it.

        Raises:
            UserError: PyTorch is too old, there is one process, a hook needs a whole model, or the
                model has no units.
        """
        if get_world_size() == 1:
            raise UserError('--shard needs several processes: tools/dist_train.sh CONFIG GPUS')
        try:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard
        except ImportError as error:
            raise UserError(f'--shard needs torch 2.6, this is {torch.__version__}') from error
        if any('EMAHook' in str(hook['type']) for hook in self.cfg.get('custom_hooks', [])):
            raise UserError('--shard: EMAHook keeps a whole model, set custom_hooks=[]')
        units = list(fsdp_units(model))
        if not units:
            raise UserError(
                f'--shard: {type(model).__name__} has no module that FSDP can gather by itself; '
                f'train without --shard, or give the class of its repeated modules a name like '
                f'{", ".join(FSDP_UNITS)}'
            )
        model.to(get_device())
        self.model = model
        super()._init_model_weights()  # while it is whole
        mesh = init_device_mesh(get_device(), (get_world_size(),))
        for module in (*units, model):
            fully_shard(module, mesh=mesh)
        parts: list[Any] = list(model.parameters())
        kept = sum(part.to_local().numel() for part in parts)
        total = sum(part.numel() for part in parts)
        self.logger.info(f'of {total:,} parameters, this process keeps {kept:,}')
        return model

    def _init_model_weights(self) -> None:
        pass  # done before the model was spread

    def resume(self, filename: str, **kwargs: Any) -> None:
        """Go on from a checkpoint, a whole one."""
        self._resume = True
        super().resume(filename, **kwargs)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Gather everything in all processes, and write it in one."""
        self.full = dict(state_dict=_gather(self.model.state_dict()))
        if kwargs.get('save_optimizer', True):
            self.full['optimizer'] = _gather(self.optim_wrapper.state_dict())
        super().save_checkpoint(*args, **kwargs)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Let hooks see whole checkpoints; mmengine reads and writes this process's part."""
        if fn_name == 'before_save_checkpoint':
            kwargs['checkpoint'].update(self.full)
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'after_load_checkpoint':
            self._scatter(kwargs['checkpoint'])

    def _scatter(self, checkpoint: dict) -> None:
        own, state = self.model.state_dict(), checkpoint['state_dict']
        for name in own.keys() & state.keys():
            if own[name].shape == state[name].shape:
                state[name] = _spread_as(own[name], state[name])
        if self._resume and 'optimizer' in checkpoint:
            # Its state is numbered as the parameters are in their groups.
            groups = self.optim_wrapper.param_groups
            parameters = [parameter for group in groups for parameter in group['params']]
            for number, entries in checkpoint['optimizer']['state'].items():
                for key, value in entries.items():
                    if value.shape == parameters[number].shape:
                        entries[key] = _spread_as(parameters[number], value)


def _gather(state: Any) -> Any:
    """The same with whole tensors, in the memory of the CPU."""
    return apply_to(
        state,
        torch.is_tensor,
        lambda x: (x.full_tensor() if hasattr(x, 'full_tensor') else x).cpu(),
    )


def _spread_as(like: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, which all processes have, in the parts that another is in."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device, like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

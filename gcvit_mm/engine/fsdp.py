"""Sharded training: each process holds a part of the parameters, gradients and optimizer state."""

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

    Its checkpoints have the format of ``Runner``, so either runner can resume from them, with any
    number of processes. mmengine's ``FSDPStrategy`` needs GPUs and ``FlexibleRunner``, and writes
    another format.
    """

    full: dict[str, Any]

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Initialise and shard the model; mmengine calls this method."""
        if get_world_size() == 1:
            raise UserError('--shard needs several processes: run tools/dist_train.sh CONFIG GPUS')
        try:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard
        except ImportError as error:
            raise UserError(f'--shard needs torch 2.6, not {torch.__version__}') from error
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
        super()._init_model_weights()  # before the model is sharded
        mesh = init_device_mesh(get_device(), (get_world_size(),))
        for module in (*units, model):
            fully_shard(module, mesh=mesh)
        parts: list[Any] = list(model.parameters())
        local = sum(part.to_local().numel() for part in parts)
        total = sum(part.numel() for part in parts)
        self.logger.info(f'this process holds {local:,} of {total:,} parameters')
        return model

    def _init_model_weights(self) -> None:
        pass  # ``wrap_model`` has done it

    def resume(self, filename: str, **kwargs: Any) -> None:
        """Resume from an unsharded checkpoint."""
        self._resume = True
        super().resume(filename, **kwargs)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Gather model and optimizer state in all processes, and write them in one."""
        self.full = dict(state_dict=_gather(self.model.state_dict()))
        if kwargs.get('save_optimizer', True):
            self.full['optimizer'] = _gather(self.optim_wrapper.state_dict())
        super().save_checkpoint(*args, **kwargs)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Give hooks unsharded checkpoints; mmengine reads and writes this process's shard."""
        if fn_name == 'before_save_checkpoint':
            kwargs['checkpoint'].update(self.full)
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'after_load_checkpoint':
            self._scatter(kwargs['checkpoint'])

    def _scatter(self, checkpoint: dict) -> None:
        own, state = self.model.state_dict(), checkpoint['state_dict']
        for name in own.keys() & state.keys():
            if own[name].shape == state[name].shape:
                state[name] = _shard_like(own[name], state[name])
        if self._resume and 'optimizer' in checkpoint:
            # Optimizers number their state in the order of the parameter groups.
            groups = self.optim_wrapper.param_groups
            parameters = [parameter for group in groups for parameter in group['params']]
            for number, entries in checkpoint['optimizer']['state'].items():
                for key, value in entries.items():
                    if value.shape == parameters[number].shape:
                        entries[key] = _shard_like(parameters[number], value)


def _gather(state: Any) -> Any:
    """Replace sharded tensors by whole ones in CPU memory."""
    return apply_to(
        state,
        torch.is_tensor,
        lambda x: (x.full_tensor() if hasattr(x, 'full_tensor') else x).cpu(),
    )


def _shard_like(like: Tensor, whole: Tensor) -> Tensor:
    """Shard a tensor, which all processes have, in the way that ``like`` is sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device, like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

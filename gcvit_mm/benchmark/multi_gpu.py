"""Memory and communication of a training step on several GPUs, computed from a config.

Nothing is trained, and no weights are read: the model is built on PyTorch's meta device, whose
tensors have no data.
"""

import copy
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, OPTIMIZERS, Registry
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..choices import FSDP_UNITS
from ..config import build_model, default_scope, find_class
from ..errors import UserError
from ..fsdp_units import fsdp_units


class Size(NamedTuple):
    """Bytes of parameters, and of the gradients of the trainable ones among them."""

    parameters: int
    gradients: int


@dataclass(frozen=True)
class Training:
    """Counts and sizes of a training process without sharding; sizes are in bytes."""

    parameters: int
    trainable: int
    images: int  # per GPU and optimizer step
    passes: int  # forward and backward passes per optimizer step
    optimizer: str
    weights: Size  # of all parameters
    root: Size  # of the parameters outside FSDP's units, which stay gathered during a step
    unit: Size  # of FSDP's largest unit
    optimizer_state: int
    buckets: int  # DDP's copies of the gradients, for all-reduce
    whole: dict[str, int]  # what neither DDP nor FSDP changes

    def memory(self, gpus: int, *, sharded: bool) -> dict[str, int]:
        """Compute the memory of each GPU with DDP or FSDP; a single GPU uses neither."""
        sharded = sharded and gpus > 1
        parts = {**self.weights._asdict(), 'optimizer': self.optimizer_state}
        if sharded:
            parts = {name: -(-size // gpus) for name, size in parts.items()}
        parts |= {
            'buckets': 0 if sharded or gpus == 1 else self.buckets,
            'gathered': sum(self.root + self.unit) if sharded else 0,
            **self.whole,
        }
        return parts | {'total': sum(parts.values())}

    def sent(self, gpus: int, *, sharded: bool) -> float:
        """Compute the bytes that each GPU of a ring sends in an optimizer step.

        DDP reduces accumulated gradients once. FSDP gathers parameters in each forward pass and,
        except for the root, again in each backward pass, which also reduces and scatters gradients.
        """
        ring = (gpus - 1) / gpus
        gathered = 2 * self.weights.parameters - self.root.parameters
        fsdp = self.passes * ring * (gathered + self.weights.gradients)
        return fsdp if sharded else 2 * ring * self.weights.gradients


def read_training(
    cfg: Config,
    *,
    amp: bool = False,
    units: Sequence[str] = FSDP_UNITS,
    size: tuple[int, int] | None = None,
) -> Training:
    """Compute the counts and sizes of the training of a config.

    Mixed precision is assumed for ``amp``, even if the config does not use it. Activations, which
    take long, are computed for images of ``size``, height and width.
    """
    for key in ('model', 'train_dataloader.batch_size', 'optim_wrapper.optimizer'):
        section, _, name = key.partition('.')
        if not cfg.get(section) or (name and name not in cfg[section]):
            raise UserError(f'config {cfg.filename} has no {key}: give a config with a training')
    model = build_model(cfg, meta=True)
    batch = cfg.train_dataloader.batch_size
    passes = cfg.optim_wrapper.get('accumulative_counts', 1)
    activations = activation_bytes(model, batch, size) if size else 0
    of_units = [set(unit.parameters()) for unit in fsdp_units(model, units)]
    parameters = list(model.parameters())
    count, weights = sum(parameter.numel() for parameter in parameters), _size(parameters)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    with default_scope(cfg):
        ema = any(_is_kind(HOOKS, hook, EMAHook) for hook in hooks if hook)
        amp = amp or _is_kind(OPTIM_WRAPPERS, cfg.optim_wrapper, AmpOptimWrapper)
        state = optimizer_state(model, cfg.optim_wrapper)
    views = (cfg.get('model_wrapper_cfg') or {}).get('gradient_as_bucket_view', False)
    return Training(
        parameters=count,
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        images=batch * passes,
        passes=passes,
        optimizer=_name(cfg.optim_wrapper.optimizer.get('type')),
        weights=weights,
        root=_size(set(parameters).difference(*of_units)),
        unit=max(map(_size, of_units), default=Size(0, 0)),
        optimizer_state=state,
        buckets=0 if views else weights.gradients,
        whole={
            'EMA': weights.parameters + buffers if ema else 0,
            '16-bit copies': 2 * count if amp else 0,  # at most
            'buffers': buffers,
            'activations': activations,
        },
    )


def _size(parameters: Iterable[nn.Parameter]) -> Size:
    sizes = [(parameter.nbytes, parameter.requires_grad) for parameter in parameters]
    return Size(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def _is_kind(registry: Registry, cfg: ConfigDict, base: type) -> bool:
    cls = find_class(registry, cfg.get('type'))
    return inspect.isclass(cls) and issubclass(cls, base)


def _name(kind: Any) -> str:
    return kind.__name__ if inspect.isclass(kind) else str(kind)


def optimizer_state(model: nn.Module, optim_wrapper: ConfigDict) -> int:
    """Compute the bytes of an optimizer's state, by a step on the meta device in the default scope.

    Raises:
        UserError: The optimizer cannot be built, or cannot take a step on the meta device.
    """
    name = _name(optim_wrapper.optimizer.get('type'))
    if find_class(OPTIMIZERS, optim_wrapper.optimizer.get('type')) is None:
        raise UserError(f'optim_wrapper.optimizer.type: there is no optimizer {name}')
    # Without the type of the wrapper, because mixed precision requires a GPU.
    keys = ('optimizer', 'constructor', 'paramwise_cfg')
    cfg = copy.deepcopy(ConfigDict({k: v for k, v in optim_wrapper.items() if k in keys}))
    cfg.optimizer.pop('fused', None)  # the meta device has no fused kernels
    _add_gradients(model)
    try:
        optimizer = build_optim_wrapper(model, cfg).optimizer
        optimizer.step()
    except UserError:
        raise
    except Exception as error:  # a config may name any class
        raise UserError(
            f'optim_wrapper: the state of optimizer {name} cannot be computed: {error!r}'
        ) from error
    leaves = tree_leaves(dict(optimizer.state))
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def _add_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
) -> Tensor:
    """Compute attention like the fused GPU kernels, which do not store the scores."""
    mask = None if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, mask, compute_log_sumexp=True)[0]


def activation_bytes(model: Any, batch: int, size: tuple[int, int]) -> int:
    """Compute the peak memory of backbone and neck without parameters, gradients and buffers.

    Heads are skipped, because they depend on values, which the meta device does not have.
    """
    from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

    _add_gradients(model)  # counted as gradients, not in the peak of activations
    tracker = MemTracker()
    tracker.track_external(model.train())
    try:
        with tracker, patch.object(F, 'scaled_dot_product_attention', _fused_attention):
            outs = model.extract_feat(torch.empty(batch, 3, *size, device='meta'))
            torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])
    except Exception as error:  # a config may name any class
        raise UserError(
            f'the activations of {type(model).__name__} cannot be computed, omit --size: {error!r}'
        ) from error
    peak = tracker.get_tracker_snapshot('peak')[torch.device('meta')]
    return peak[_MemRefType.ACT] + peak[_MemRefType.TEMP]

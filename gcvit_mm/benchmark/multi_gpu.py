"""Memory and communication of a training step on several GPUs, computed from a config.

Nothing is trained and no weights are read: the model is built on PyTorch's meta device, which has
no values, and the rest is arithmetic.
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

BACKWARD_SHARE = 2 / 3
"""Of the time of a forward and a backward pass: two products for each one of the forward pass."""
BYTES_OF_HALF = 2


class Size(NamedTuple):
    """Bytes of some parameters, and of the gradients of those that are trained."""

    parameters: int
    gradients: int


@dataclass(frozen=True)
class Training:
    """What a process holds before anything is sharded: sizes in bytes, after four numbers."""

    parameters: int
    trainable: int
    batch: int  # images of a forward pass
    accumulation: int  # forward and backward passes of a step of the optimizer
    optimizer: str
    weights: Size  # all of them
    root: Size  # those in none of FSDP's units, which stay gathered during a step
    unit: Size  # FSDP's largest unit
    buffers: int
    optimizer_state: int
    buckets: int  # copies of the gradients, in which DDP reduces them
    ema: int
    half: int  # 16-bit copies of the weights, at most
    activations: int

    def memory(self, gpus: int, *, sharded: bool) -> dict[str, int]:
        """The bytes that each GPU holds, by DDP or sharded by FSDP; a single GPU is not wrapped."""
        sharded = sharded and gpus > 1
        parts = {**self.weights._asdict(), 'optimizer': self.optimizer_state}
        if sharded:
            parts = {name: -(-size // gpus) for name, size in parts.items()}
        parts |= {
            'buckets': 0 if sharded or gpus == 1 else self.buckets,
            'gathered': sum(self.root + self.unit) if sharded else 0,
            'EMA': self.ema,
            '16-bit copies': self.half,
            'buffers': self.buffers,
            'activations': self.activations,
        }
        return parts | {'total': sum(parts.values())}

    def traffic(self, gpus: int, *, sharded: bool) -> 'Traffic':
        """What each GPU of a ring sends in a step of the optimizer.

        DDP reduces accumulated gradients once. FSDP gathers parameters in each forward pass and,
        except the root's, again in each backward pass, which also reduces and scatters gradients.
        """
        ring = (gpus - 1) / gpus
        if not sharded:
            return Traffic(0.0, 0.0, 2 * ring * self.weights.gradients, self.accumulation)
        again = self.weights.parameters - self.root.parameters
        backward = ring * (again + self.weights.gradients)
        return Traffic(ring * self.weights.parameters, backward, 0.0, self.accumulation)


class Traffic(NamedTuple):
    """Bytes sent in each forward and each backward pass, and besides in the last backward pass."""

    forward: float
    backward: float
    last: float
    passes: int

    @property
    def total(self) -> float:
        """The bytes of a step."""
        return self.passes * (self.forward + self.backward) + self.last


class Links(NamedTuple):
    """How fast GPUs send: Gbit/s of a GPU within its node, and of a node to another."""

    within: float
    between: float
    gpus_per_node: int

    def nodes(self, gpus: int) -> int:
        return -(-gpus // self.gpus_per_node)

    def slowest(self, gpus: int) -> float:
        """Gbit/s of the slowest link of a ring."""
        return min(self.within, self.between) if self.nodes(gpus) > 1 else self.within

    def seconds(self, sent: float, gpus: int) -> float:
        """The time in which each GPU of a ring sends so many bytes."""
        return sent * 8 / (self.slowest(gpus) * 1e9)


def read_training(
    cfg: Config,
    *,
    amp: bool = False,
    units: Sequence[str] = FSDP_UNITS,
    size: tuple[int, int] | None = None,
) -> Training:
    """Count what a config trains.

    Args:
        cfg: The config; it is not changed.
        amp: Mixed precision, also where the config does not ask for it.
        units: The classes of FSDP's units, as of ``FSDP_UNITS``.
        size: Height and width of the images; None leaves out activations, which take long.

    Raises:
        UserError: The config has no training, or its model or optimizer cannot be built.
    """
    for key in ('model', 'train_dataloader.batch_size', 'optim_wrapper.optimizer'):
        section, _, name = key.partition('.')
        if not cfg.get(section) or (name and name not in cfg[section]):
            raise UserError(f'config {cfg.filename} has no {key}, which a training needs')
    model = build_model(cfg, meta=True)
    batch = cfg.train_dataloader.batch_size
    activations = activation_bytes(model, batch, size) if size else 0
    found = [set(unit.parameters()) for unit in fsdp_units(model, units)]
    parameters = list(model.parameters())
    weights = _size(parameters)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    with default_scope(cfg):
        ema = any(_is_kind(HOOKS, hook, EMAHook) for hook in hooks if hook)
        amp = amp or _is_kind(OPTIM_WRAPPERS, cfg.optim_wrapper, AmpOptimWrapper)
        state = optimizer_state(model, cfg.optim_wrapper)
    views = (cfg.get('model_wrapper_cfg') or {}).get('gradient_as_bucket_view', False)
    return Training(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        batch=batch,
        accumulation=cfg.optim_wrapper.get('accumulative_counts', 1),
        optimizer=_name(cfg.optim_wrapper.optimizer.get('type')),
        weights=weights,
        root=_size(set(parameters).difference(*found)),
        unit=max(map(_size, found), default=Size(0, 0)),
        buffers=buffers,
        optimizer_state=state,
        buckets=0 if views else weights.gradients,
        ema=weights.parameters + buffers if ema else 0,
        half=BYTES_OF_HALF * sum(parameter.numel() for parameter in parameters) if amp else 0,
        activations=activations,
    )


def _size(parameters: Iterable[nn.Parameter]) -> Size:
    sizes = [(parameter.nbytes, parameter.requires_grad) for parameter in parameters]
    return Size(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def _is_kind(registry: Registry, cfg: ConfigDict, of: type) -> bool:
    found = find_class(registry, cfg.get('type'))
    return inspect.isclass(found) and issubclass(found, of)


def _name(kind: Any) -> str:
    return kind.__name__ if inspect.isclass(kind) else str(kind)


def _line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def optimizer_state(model: nn.Module, optim_wrapper: ConfigDict) -> int:
    """The bytes that an optimizer keeps from step to step, known by a step without values.

    Args:
        model: The model, on the meta device; its gradients are zeros afterwards.
        optim_wrapper: The section of the config, whose names are of the current scope.

    Raises:
        UserError: The optimizer cannot be built, or cannot take a step without values.
    """
    name = _name(optim_wrapper.optimizer.get('type'))
    if find_class(OPTIMIZERS, optim_wrapper.optimizer.get('type')) is None:
        raise UserError(f'optim_wrapper.optimizer.type: there is no optimizer {name}')
    # Without what wraps the optimizer: mixed precision would ask for a GPU.
    wanted = ('optimizer', 'constructor', 'paramwise_cfg')
    cfg = copy.deepcopy(ConfigDict({k: v for k, v in optim_wrapper.items() if k in wanted}))
    cfg.optimizer.pop('fused', None)  # there are no kernels for the meta device
    _add_gradients(model)
    try:
        optimizer = build_optim_wrapper(model, cfg).optimizer
        optimizer.step()
    except UserError:
        raise
    except Exception as error:  # a config may name any class
        raise UserError(
            f'the state of optimizer {name} (optim_wrapper) cannot be counted: {_line(error)}'
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
    """Attention as of GPUs' kernels, which keep no scores; the meta device would keep them."""
    mask = None if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, mask, compute_log_sumexp=True)[0]


def activation_bytes(model: Any, batch: int, size: tuple[int, int]) -> int:
    """The most that a step of backbone and neck holds besides parameters, gradients and buffers.

    Heads are left out: they look at values, which the meta device does not have.

    Raises:
        UserError: Backbone or neck look at values too.
    """
    from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

    _add_gradients(model)  # they are counted apart: the peak is then that of everything else
    tracker = MemTracker()
    tracker.track_external(model.train())
    try:
        with tracker, patch.object(F, 'scaled_dot_product_attention', _fused_attention):
            outs = model.extract_feat(torch.empty(batch, 3, *size, device='meta'))
            torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])
    except Exception as error:  # a config may name any class
        raise UserError(
            f'--size: the activations of {type(model).__name__} cannot be counted, leave it out: '
            f'{_line(error)}'
        ) from error
    peak = tracker.get_tracker_snapshot('peak')[torch.device('meta')]
    return peak[_MemRefType.ACT] + peak[_MemRefType.TEMP]


def efficiency(
    traffic: Traffic, links: Links, gpus: int, pass_seconds: float, *, overlap: bool
) -> float:
    """A GPU's speed among others over its speed alone, between 0 and 1.

    Args:
        traffic: What it sends in a step.
        links: What it sends it over.
        gpus: How many GPUs there are.
        pass_seconds: Time of a forward and a backward pass on one GPU.
        overlap: Whether a GPU sends during backward passes; it waits for what is left after.
    """
    hidden = BACKWARD_SHARE * pass_seconds if overlap else 0.0
    forward, backward, last = (
        links.seconds(sent, gpus)
        for sent in (traffic.forward, traffic.backward, traffic.backward + traffic.last)
    )
    before = (traffic.passes - 1) * max(0.0, backward - hidden)
    waiting = traffic.passes * forward + before + max(0.0, last - hidden)
    alone = traffic.passes * pass_seconds
    return alone / (alone + waiting)

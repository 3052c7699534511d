"""Memory and communication of a training step on several GPUs, computed from a config.

Nothing is trained and no weights are read: the model is built without its values, and the rest is
arithmetic. Activations are no part of it; ``tools/benchmark.py`` measures them.
"""

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.registry import (
    HOOKS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    Registry,
    init_default_scope,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..choices import FSDP_UNITS
from ..errors import UserError

BACKWARD_SHARE = 2 / 3
"""Of the time of a forward and a backward pass: two products for each one of the forward pass."""
BYTES_OF_HALF = 2


@dataclass(frozen=True)
class Weights:
    """Some of a model's parameters.

    Attributes:
        parameters: Their bytes.
        gradients: Bytes of the gradients of those that are trained.
    """

    parameters: int
    gradients: int


@dataclass(frozen=True)
class Training:
    """What one process of a training holds before anything is sharded, in bytes unless said.

    Attributes:
        parameters: Number of the model's parameters.
        trainable: Number of those that are trained.
        weights: All of them.
        root: Those outside of FSDP's units, which FSDP keeps gathered during a step.
        unit: FSDP's largest unit.
        buffers: The model's buffers.
        optimizer: Name of the optimizer.
        optimizer_state: What the optimizer keeps from step to step.
        buckets: Copies of the gradients, in which DDP reduces them.
        ema: The averaged model.
        half: Copies of the weights in 16 bits, of mixed precision, at most.
        batch: Images of a process in a forward pass.
        accumulation: Forward and backward passes of a step of the optimizer.
    """

    parameters: int
    trainable: int
    weights: Weights
    root: Weights
    unit: Weights
    buffers: int
    optimizer: str
    optimizer_state: int
    buckets: int
    ema: int
    half: int
    batch: int
    accumulation: int

    def images(self, gpus: int) -> int:
        """Images of a step of the optimizer."""
        return self.batch * self.accumulation * gpus


@dataclass(frozen=True)
class Memory:
    """What a GPU holds without activations, in bytes; the parts are as of ``Training``.

    Attributes:
        gathered: Whole parameters and gradients that FSDP puts together for a while.
    """

    parameters: int
    gradients: int
    optimizer: int
    buckets: int
    gathered: int
    ema: int
    half: int
    buffers: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(astuple(self))


@dataclass(frozen=True)
class Traffic:
    """What each GPU sends in a step of the optimizer, in bytes.

    Attributes:
        forward: In each forward pass.
        backward: In each backward pass.
        last: In the last backward pass, besides.
        passes: Forward and backward passes of the step.
    """

    forward: float
    backward: float
    last: float
    passes: int

    @property
    def total(self) -> float:
        """The sum."""
        return self.passes * (self.forward + self.backward) + self.last


@dataclass(frozen=True)
class Links:
    """How fast GPUs send to each other.

    Attributes:
        within: Gbit/s that a GPU sends to the others of its node.
        between: Gbit/s that a node sends to another.
        gpus_per_node: GPUs of a node.
    """

    within: float
    between: float
    gpus_per_node: int

    def nodes(self, gpus: int) -> int:
        """The nodes that so many GPUs are on."""
        return -(-gpus // self.gpus_per_node)

    def slowest(self, gpus: int) -> float:
        """Gbit/s of the slowest link of a ring through so many GPUs."""
        return min(self.within, self.between) if self.nodes(gpus) > 1 else self.within

    def seconds(self, sent: float, gpus: int) -> float:
        """The time in which each GPU of a ring sends so many bytes."""
        return sent * 8 / (self.slowest(gpus) * 1e9)


def read_training(cfg: Config, *, amp: bool = False, units: Sequence[str] = FSDP_UNITS) -> Training:
    """Count what a config trains.

    Args:
        cfg: The config; it is not changed.
        amp: Mixed precision, also where the config does not ask for it.
        units: The classes that FSDP is to shard each by itself, as of ``FSDP_UNITS``.

    Raises:
        UserError: The config has no training, or its model or optimizer cannot be built.
    """
    for section in ('model', 'train_dataloader', 'optim_wrapper'):
        if not cfg.get(section):
            raise UserError(f'the config has no {section}: it does not train')
    for section, key in (('train_dataloader', 'batch_size'), ('optim_wrapper', 'optimizer')):
        if key not in cfg[section]:
            raise UserError(f'the config has no {section}.{key}, which is needed here')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = build_model(cfg)
    parameters = list(model.parameters())
    weights = _weights(parameters)
    root, *found = (_weights(unit) for unit in fsdp_units(model, units))
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    numel = sum(parameter.numel() for parameter in parameters)
    shared = (cfg.get('model_wrapper_cfg') or {}).get('gradient_as_bucket_view', False)
    amp = amp or _is_kind(OPTIM_WRAPPERS, cfg.optim_wrapper.get('type'), AmpOptimWrapper)
    return Training(
        parameters=numel,
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        weights=weights,
        root=root,
        unit=max(found, key=lambda unit: unit.parameters, default=Weights(0, 0)),
        buffers=buffers,
        optimizer=_name(cfg.optim_wrapper.optimizer.get('type')),
        optimizer_state=optimizer_state(model, cfg.optim_wrapper),
        buckets=0 if shared else weights.gradients,
        # The hook copies the module, with its buffers.
        ema=weights.parameters + buffers if _has_ema(cfg) else 0,
        half=BYTES_OF_HALF * numel if amp else 0,
        batch=cfg.train_dataloader.batch_size,
        accumulation=cfg.optim_wrapper.get('accumulative_counts', 1),
    )


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model without its values, on the meta device where the model allows it.

    Raises:
        UserError: The model cannot be built.
    """
    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:  # as mmengine's runner does
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    try:
        try:
            with torch.device('meta'):
                return MODELS.build(model)
        except (NotImplementedError, RuntimeError):  # it looks at values that it makes
            return MODELS.build(model)
    except UserError:
        raise
    except Exception as error:  # a config may name any class
        raise UserError(f'the model of the config cannot be built: {_line(error)}') from error


def fsdp_units(model: nn.Module, classes: Sequence[str]) -> list[list[nn.Parameter]]:
    """The parameters that FSDP gathers together: outside of all units first, then each unit's.

    Args:
        model: The model.
        classes: Names of the units' classes, with wildcards; units within a unit are part of it.
    """
    taken: set[nn.Parameter] = set()
    units = []
    for module in _outermost(model, classes):
        own = [parameter for parameter in module.parameters() if parameter not in taken]
        taken.update(own)
        units.append(own)
    return [[parameter for parameter in model.parameters() if parameter not in taken], *units]


def _outermost(module: nn.Module, classes: Sequence[str]) -> Iterator[nn.Module]:
    for child in module.children():
        if any(fnmatchcase(type(child).__name__, name) for name in classes):
            yield child
        else:
            yield from _outermost(child, classes)


def _weights(parameters: Iterable[nn.Parameter]) -> Weights:
    sizes = [(parameter.nbytes, parameter.requires_grad) for parameter in parameters]
    return Weights(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def optimizer_state(model: nn.Module, optim_wrapper: ConfigDict) -> int:
    """The bytes that an optimizer keeps from step to step.

    It is built as for a training and takes a step without values, so no list of optimizers is
    needed. The model's gradients are zeros afterwards.

    Args:
        model: The model, best on the meta device.
        optim_wrapper: The section of the config.

    Raises:
        UserError: The optimizer cannot be built, or cannot take a step without values.
    """
    name = _name(optim_wrapper.optimizer.get('type'))
    if _found(OPTIMIZERS, optim_wrapper.optimizer.get('type')) is None:
        raise UserError(f'optim_wrapper.optimizer.type: there is no optimizer {name}')
    # Without what wraps the optimizer: mixed precision would ask for a GPU.
    wanted = ('optimizer', 'constructor', 'paramwise_cfg')
    cfg = copy.deepcopy(ConfigDict({k: v for k, v in optim_wrapper.items() if k in wanted}))
    cfg.optimizer.pop('fused', None)  # there are no kernels for the meta device
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
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


def _has_ema(cfg: Config) -> bool:
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    return any(_is_kind(HOOKS, hook.get('type'), EMAHook) for hook in hooks if hook)


def _is_kind(registry: Registry, kind: Any, of: type) -> bool:
    found = _found(registry, kind)
    return inspect.isclass(found) and issubclass(found, of)


def _found(registry: Registry, kind: Any) -> Any:
    """What a config's ``type`` stands for, which is a class or its name; None if for nothing."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(kind)


def _name(kind: Any) -> str:
    return kind.__name__ if inspect.isclass(kind) else str(kind)


def _line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def ddp_memory(training: Training, gpus: int) -> Memory:
    """What each GPU holds with DistributedDataParallel; a single GPU is not wrapped by it."""
    return Memory(
        parameters=training.weights.parameters,
        gradients=training.weights.gradients,
        optimizer=training.optimizer_state,
        buckets=training.buckets if gpus > 1 else 0,
        gathered=0,
        ema=training.ema,
        half=training.half,
        buffers=training.buffers,
    )


def fsdp_memory(training: Training, gpus: int) -> Memory:
    """What each GPU holds with FullyShardedDataParallel, sharding all (FULL_SHARD).

    The averaged model is counted whole. A single GPU is not wrapped.
    """
    if gpus == 1:
        return ddp_memory(training, gpus)
    weights, root, unit = training.weights, training.root, training.unit
    return Memory(
        parameters=_share(weights.parameters, gpus),
        gradients=_share(weights.gradients, gpus),
        optimizer=_share(training.optimizer_state, gpus),
        buckets=0,
        gathered=root.parameters + root.gradients + unit.parameters + unit.gradients,
        ema=training.ema,
        half=training.half,
        buffers=training.buffers,
    )


def _share(size: int, gpus: int) -> int:
    return -(-size // gpus)


def ddp_traffic(training: Training, gpus: int) -> Traffic:
    """What each GPU sends with DistributedDataParallel: a ring all-reduce of the gradients.

    Gradients that accumulate are reduced once.
    """
    reduced = 2 * _ring(training.weights.gradients, gpus)
    return Traffic(forward=0.0, backward=0.0, last=reduced, passes=training.accumulation)


def fsdp_traffic(training: Training, gpus: int) -> Traffic:
    """What each GPU sends with FullyShardedDataParallel, sharding all (FULL_SHARD).

    Parameters are gathered in each forward pass and, except the root's, again in each backward
    pass, which also reduces and scatters gradients: mmengine lets FSDP do so in every pass, also
    where gradients accumulate.
    """
    weights = training.weights
    again = weights.parameters - training.root.parameters
    return Traffic(
        forward=_ring(weights.parameters, gpus),
        backward=_ring(again, gpus) + _ring(weights.gradients, gpus),
        last=0.0,
        passes=training.accumulation,
    )


def _ring(size: int, gpus: int) -> float:
    """Bytes that a GPU of a ring sends to gather, or to reduce and scatter, so many bytes."""
    return size * (gpus - 1) / gpus


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

"""Loading of pretrained weights into a backbone, with a report on every tensor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from ..compat.mmdet_dino import widened
from ..errors import UserError
from .files import read_checkpoint, state_dict_of
from .hub import resolve
from .names import convert_names, describe, shorten

if TYPE_CHECKING:
    from ..models.gcvit import GCViT


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Resize a relative-position-bias table to another window by bicubic interpolation.

    The table is ((2 s - 1)^2, heads) for the source window s, the result likewise for ``window``.
    """
    side = math.isqrt(len(table))
    target = 2 * window - 1
    grid = table.float().T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, (target, target), mode='bicubic', align_corners=False)
    return grid.flatten(2)[0].T.to(table.dtype)


@dataclass
class LoadReport:
    """Loaded, resized and newly initialised tensors of a model, and unused ones of the file."""

    source: str
    naming: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f'{self.source} ({self.naming} naming): {len(self.loaded)} tensors loaded, '
            f'{len(self.resized)} bias tables resized, '
            f'{len(self.new)} newly initialised{_some(self.new)}, '
            f'{len(self.unused)} of the file not used{_some(self.unused)}'
        )


def _some(names: Sequence[str], most: int = 8) -> str:
    return f' ({shorten(names, most)})' if names else ''


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors of a model that are missing in a state dict or have another shape there.

    Counters of batch normalisation are ignored.
    """
    target = model.state_dict()
    state = {**state, **widened(state, target)}
    return [
        name
        for name, own in target.items()
        if 'num_batches_tracked' not in name
        and (name not in state or state[name].shape != own.shape)
    ]


def load_pretrained(
    model: 'GCViT',
    checkpoint: str,
    *,
    prefix: str | None = None,
    map_location: str = 'cpu',
    allow_missing: Sequence[str] = (),
) -> LoadReport:
    """Load official, timm's or our weights into a backbone with windows of any size.

    All tensors are checked before the first one is loaded.

    Args:
        model: The backbone.
        checkpoint: A ``.pth``, ``.pth.tar`` or ``.safetensors`` file, or ``gcvit://NAME``, which
            ``gcvit_mm.weights.hub`` downloads.
        prefix: Prefix of the backbone's names in the file, such as 'backbone.'; None detects it if
            the file has one backbone.
        map_location: Device to read to.
        allow_missing: Prefixes of the names of tensors that may be missing or have another shape,
            such as 'stages.3.'; those keep their initialisation.

    Returns:
        The report, which is also logged.

    Raises:
        UserError: The file is missing, damaged, of another variant, or cannot be downloaded, or it
            has less than 90 % of the parameters that are not in ``allow_missing``.
    """
    try:
        state = state_dict_of(read_checkpoint(resolve(checkpoint), map_location))
        state, naming = convert_names(state, prefix)
        tensors, report = _match(model, state, tuple(allow_missing))
    except UserError as error:
        message = str(error)
        raise UserError(
            message if checkpoint in message else f'checkpoint {checkpoint}: {message}'
        ) from error
    report.source, report.naming = checkpoint, naming
    model.load_state_dict(tensors, strict=False)
    print_log(f'GCViT weights from {report}', logger='current')
    return report


def _match(
    model: 'GCViT', state: dict[str, Tensor], allow_missing: tuple[str, ...]
) -> tuple[dict[str, Tensor], LoadReport]:
    target = model.state_dict()
    report = LoadReport('', '')
    report.unused = [name for name in state if name not in target]
    # Heads, output norms and later stages may be unused, but not the blocks of a built stage.
    built = tuple(f'stages.{i}.blocks.' for i in range(len(model.stages)))
    wrong = [name for name in report.unused if name.startswith(built)]
    tensors = {}
    for name, own in target.items():
        tensor = state.get(name)
        if tensor is None:
            report.new.append(name)
        elif tensor.shape == own.shape:
            tensors[name] = tensor
            report.loaded.append(name)
        elif name.endswith('relative_position_bias_table') and tensor.shape[1] == own.shape[1]:
            tensors[name] = resize_bias_table(tensor, (math.isqrt(len(own)) + 1) // 2)
            report.resized.append(name)
        elif name.startswith(allow_missing):
            report.new.append(name)
        else:
            wrong.append(name)
    required = [name for name in target if not (allow_missing and name.startswith(allow_missing))]
    share = sum(target[n].numel() for n in required if n in tensors) / sum(
        target[n].numel() for n in required
    )
    if wrong or share < 0.9:
        raise UserError(
            f'the file has {describe(state)}, the model is {describe(target)}: '
            f'{share:.0%} of the model would be loaded'
            + (f', {len(wrong)} tensors do not fit{_some(wrong, 3)}' if wrong else '')
            + '. Use a checkpoint of the arch of the model, or list tensors that may be missing in '
            'init_cfg.allow_missing'
        )
    return tensors, report

"""Buffers that are computed from the settings of a model, and are not in checkpoints."""

from typing import Any

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: drop the residual branch of whole samples at random while training."""

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drops = rate > 0
        # A tensor, because a number would make torch.compile compile each block anew.
        self.register_buffer('keep', self.compute()['keep'], persistent=False)

    def compute(self) -> dict[str, Tensor]:
        return {'keep': torch.tensor(1.0 - self.rate)}

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.drops):
            return x
        keep = self.keep.to(x.dtype)
        mask = torch.bernoulli(keep.expand(x.shape[0], *[1] * (x.ndim - 1)))
        return x * (mask / keep)


def compute_buffers(model: nn.Module, *_: Any) -> None:
    """Compute the buffers of a model, which have no values if it was built on the meta device."""
    with torch.device(next(model.parameters()).device):
        for module in model.modules():
            compute: Any = getattr(module, 'compute', dict)
            for name, value in compute().items():
                buffer = getattr(module, name)
                if buffer.is_meta or buffer.shape != value.shape:
                    setattr(module, name, value)
                else:  # CUDA graphs read it where it is
                    buffer.copy_(value)

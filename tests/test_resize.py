"""Resizing by matrix products."""

import pytest
import torch
import torch.nn.functional as F

from gcvit_mm.models.resize import bicubic_weights, resize


@pytest.mark.parametrize('size', [(25, 40), (7, 3), (1, 1), (100, 2), (24, 24)])
@pytest.mark.parametrize('target', [7, 24, 1])
def test_resizing_is_that_of_interpolate_with_its_gradient(size, target):
    torch.manual_seed(0)
    x = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    ours = resize(x, *(bicubic_weights(n, target, x) for n in size))
    maps = x.permute(0, 3, 1, 2)
    theirs = F.interpolate(maps, (target, target), mode='bicubic').permute(0, 2, 3, 1)
    cotangent = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    grads = [torch.autograd.grad(out, x, cotangent)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6)

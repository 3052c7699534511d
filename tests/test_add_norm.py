"""Residual addition and LayerNorm in one kernel, on a GPU or else in Triton's interpreter."""

import pytest
import torch
from interpreter import pass_in_the_interpreter
from torch import nn
from torch.testing import assert_close

if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)

from gcvit_mm.models.kernels import add_norm as kernels
from gcvit_mm.models.kernels.add_norm import add_norm, available

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
RUNS = available(torch.zeros(1, device=DEVICE))
on_device = pytest.mark.skipif(not RUNS, reason='test_the_kernels_in_the_interpreter runs this')


@on_device
@pytest.mark.parametrize('size', [(6, 9), (7, 5), (1, 1)])
@pytest.mark.parametrize('channels', [32, 96])
@pytest.mark.parametrize(
    ('from_windows', 'to_windows', 'branched', 'drops'),
    [(False, True, True, True), (True, False, True, True), (False, True, False, False),
     (True, True, True, False), (False, False, True, False)],
)  # fmt: skip
def test_values_and_gradients(
    size, channels, from_windows, to_windows, branched, drops, monkeypatch
):
    monkeypatch.setattr(kernels, 'PROGRAMS', 2)  # each sums over several blocks
    torch.manual_seed(0)
    window = 3
    x = torch.randn(2, *size, channels, device=DEVICE, requires_grad=True)
    count = 2 * -(-size[0] // window) * -(-size[1] // window)
    shape = (count, window**2, channels) if from_windows else x.shape
    branch = torch.randn(shape, device=DEVICE, requires_grad=True) if branched else None
    shift = torch.randn(channels, device=DEVICE, requires_grad=True) if from_windows else None
    path = torch.tensor([0, 1.5], device=DEVICE) if drops else None
    norm = nn.LayerNorm(channels, device=DEVICE)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    windows = dict(from_windows=from_windows, to_windows=to_windows)
    ours = add_norm(x, branch, shift, path, norm, window, torch.float32, **windows)
    inputs = [
        x,
        *([branch] if branched else []),
        *([shift] if from_windows else []),
        *norm.parameters(),
    ]
    theirs = kernels._in_pytorch(
        x, branch, shift, path, norm, window, torch.float32, from_windows, to_windows
    )
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    cotangents = [torch.randn_like(out) for out in ours]
    grads = [torch.autograd.grad(outs, inputs, cotangents) for outs in (ours, theirs)]
    assert_close(*grads, atol=1e-4, rtol=1e-4)


@on_device
def test_the_output_is_in_the_type_that_is_asked_for():
    x, norm = torch.randn(1, 4, 4, 32, device=DEVICE), nn.LayerNorm(32, device=DEVICE)
    branch = torch.randn(1, 4, 4, 32, device=DEVICE).bfloat16()
    y, out = add_norm(x, branch, None, None, norm, 2, torch.bfloat16)
    assert_close(y, x + branch)
    assert_close(out, norm(y).bfloat16(), atol=1e-2, rtol=1e-2)


@pytest.mark.skipif(RUNS or kernels.triton is None, reason='the tests above have run')
def test_the_kernels_in_the_interpreter():
    pass_in_the_interpreter(__file__)

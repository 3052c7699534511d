"""Blocks as GPUs compute them: equal to those of CPUs, in few kernels, without cuDNN."""

import pytest
import torch
import torch.nn.functional as F
from interpreter import pass_in_the_interpreter
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gcvit_mm import GCViT
from gcvit_mm.models import fused, gcvit
from gcvit_mm.models.gcvit import Stage
from gcvit_mm.models.kernels.add_norm import available

INTERPRETED = available(torch.zeros(1))


def stage(layer_scale: float | None = None, with_cp: bool = False, impl: str = 'sdpa') -> Stage:
    torch.manual_seed(0)
    block = dict(mlp_ratio=2.0, layer_scale=layer_scale, attn_impl=impl)
    made = Stage(32, 2, 3, [False], [0.0, 0.4, 0.4], with_cp, downsample=False, **block)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def results(made: Stage, x: torch.Tensor, on_gpu: bool, monkeypatch) -> list[torch.Tensor]:
    monkeypatch.setattr(gcvit, 'can_fuse', lambda *_: on_gpu)
    torch.manual_seed(1)  # of dropped paths
    x = x.clone().requires_grad_()
    out = made(x)
    out.mul(torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    grads = [x.grad, *(p.grad for p in made.parameters())]
    made.zero_grad()
    return [out.detach(), *grads]


@pytest.mark.parametrize('size', [(6, 9), (7, 5), (2, 2)])
@pytest.mark.parametrize(('layer_scale', 'with_cp'), [(None, False), (0.5, True)])
def test_a_stage_has_the_values_and_gradients_of_ordinary_blocks(
    size, layer_scale, with_cp, monkeypatch
):
    made, x = stage(layer_scale, with_cp), torch.randn(2, *size, 32)
    ours, theirs = (results(made, x, on_gpu, monkeypatch) for on_gpu in (True, False))
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_a_stage_in_half_precision_is_near_and_its_gradients_are_of_the_weights(monkeypatch):
    made, x = stage(), torch.randn(2, 7, 5, 32)
    theirs = results(made, x, False, monkeypatch)
    monkeypatch.setattr(fused, '_dtype', lambda _: torch.bfloat16)  # autocast on CPUs differs
    ours = results(made, x, True, monkeypatch)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.05 * other.norm() + 1e-3


@pytest.mark.skipif(not INTERPRETED, reason='runs in the interpreter')
def test_a_stage_with_attention_by_triton(monkeypatch):
    x = torch.randn(2, 7, 5, 32)
    ours = results(stage(impl='triton'), x, True, monkeypatch)
    theirs = results(stage(), x, False, monkeypatch)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


class Kernels(TorchDispatchMode):
    """Counts what is launched."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        views = any(r.alias_info for r in func._schema.returns) and not writes
        silent = any(part in func._schema.name for part in ('empty', '_unsafe_view', 'prim::'))
        self.count += not views and not silent
        return out


class Attention(TorchFunctionMode):
    """Notes whether cuDNN may compute attention, which a fake GPU cannot choose."""

    def __init__(self):
        super().__init__()
        self.cudnn = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.cudnn.append(torch.backends.cuda.cudnn_sdp_enabled())
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def forward_on_a_fake_gpu(model: GCViT, height: int, width: int) -> tuple[int, list[bool]]:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), Attention() as attention:
        x = torch.empty(2, 3, height, width, device='cuda')
        for module in model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                fake = torch.empty(p.shape, device='cuda', dtype=p.dtype)
                setattr(module, name, nn.Parameter(fake))
            for name, b in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(b.shape, device='cuda', dtype=b.dtype))
        with torch.autocast('cuda', torch.bfloat16):
            model(x)  # computes what is kept
            with Kernels() as kernels:
                model(x)
    return kernels.count, attention.cudnn


@pytest.mark.skipif(INTERPRETED, reason='runs without the interpreter')
def test_few_kernels_are_launched_and_none_is_attention_by_cudnn():
    count, cudnn = forward_on_a_fake_gpu(GCViT('tiny').eval(), 800, 1280)
    # Without our own kernels, and without those that cast weights of convolutions in autocast.
    assert count <= 410
    assert cudnn == [False] * 2 * 31


@pytest.mark.skipif(INTERPRETED, reason='runs without the interpreter')
def test_hooks_of_modules_are_called_on_gpus_too():
    model = GCViT('xxtiny').eval()
    block = model.get_submodule('stages.0.blocks.1')
    seen = []
    block.attn.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape))
    _, cudnn = forward_on_a_fake_gpu(model, 64, 64)
    assert seen == [(2, 16, 16, 64)] * 2
    assert not any(cudnn)


@pytest.mark.skipif(INTERPRETED or not hasattr(torch.library, 'custom_op'), reason='has run')
def test_with_the_kernels_in_the_interpreter():
    pass_in_the_interpreter(__file__)

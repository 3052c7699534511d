"""CUDA graphs of the backbone compute what it computes without them."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from gcvit_mm import GCViT
from gcvit_mm.errors import ArgumentError

ARCH = dict(
    dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=2, layer_scale=0.5,
    drop_path_rate=0.5,
)  # fmt: skip
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')


def pair(impl: str = 'auto', **options: object) -> tuple[GCViT, GCViT]:
    """A model without graphs, and the model with graphs and the same weights, in training mode."""
    torch.manual_seed(0)
    plain = GCViT(ARCH, attn_impl=impl, **options).cuda().train()
    graphed = GCViT(
        ARCH, attn_impl=impl, compile_sides=(), compile_mode='cuda_graphs', **options
    ).cuda()
    graphed.load_state_dict(plain.state_dict())
    return plain, graphed.train()


def images(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, device='cuda')


def loss(outs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return sum((out.float() ** 2).mean() for out in outs)


def grads(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@on_gpu
@pytest.mark.parametrize('impl', ['eager', 'sdpa', 'triton'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_steps_of_training_with_images_of_several_sizes(impl, dtype):
    models = pair(impl)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for step, size in enumerate([(64, 96), (50, 70), (64, 96), (64, 96)]):
        x = images(*size)
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(step)  # the same paths are dropped
            optimizer.zero_grad()
            with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
                loss(model(x)).backward()
            optimizer.step()
        assert_close(grads(models[1]), grads(models[0]), atol=tolerance, rtol=tolerance)
        models[1].load_state_dict(models[0].state_dict())  # in place: rounding must not add up
    assert len(models[1].graphs.recorded) == 2
    for model in models:
        model.eval()
    for without_gradients in (torch.inference_mode, torch.no_grad):
        with without_gradients():
            assert_close(models[1](x), models[0](x), atol=tolerance, rtol=tolerance)


@on_gpu
def test_gradients_of_several_passes_add_up():
    plain, graphed = pair(drop_path_rate=0.0)
    batches = [images() for _ in range(3)]
    for model in (plain, graphed):
        for x in batches:
            loss(model(x)).backward()
    assert_close(grads(graphed), grads(plain), atol=1e-4, rtol=1e-4)


@on_gpu
def test_passes_before_a_backward_pass_do_not_disturb_it():
    plain, graphed = pair(drop_path_rate=0.0)
    first, second = images(), images()
    for model in (plain, graphed):
        loss(model(second)).backward()
        model.zero_grad(set_to_none=True)
        outs = model(first)
        with torch.no_grad():
            model(second)
        both = loss(outs) + 2 * loss(model(second))
        both.backward()
    assert_close(grads(graphed), grads(plain), atol=1e-4, rtol=1e-4)


@on_gpu
def test_a_pass_without_a_backward_pass_does_not_end_the_use_of_graphs():
    _, graphed = pair()
    outs = graphed(images())
    del outs
    assert graphed.graphs.pending() is None
    with pytest.raises(RuntimeError, match='one backward pass'):
        total = loss(graphed(images()))
        total.backward(retain_graph=True)
        total.backward()


@on_gpu
def test_frozen_stages_copies_and_hooks():
    plain, graphed = pair(frozen_stages=2, drop_path_rate=0.0)
    x = images()
    for model in (plain, graphed):
        loss(model(x)).backward()
    assert_close(grads(graphed), grads(plain), atol=1e-4, rtol=1e-4)
    copied = copy.deepcopy(graphed)
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(0.5)
        assert not torch.equal(copied(x)[0], graphed(x)[0])
    seen = []
    graphed.get_submodule('stages.3').register_forward_hook(lambda *_: seen.append(1))
    graphed(x)
    graphed(x)
    assert seen == [1, 1]


def test_without_a_gpu_images_are_padded_and_nothing_is_recorded():
    torch.manual_seed(0)
    model = GCViT(ARCH, compile_sides=(64, 96), compile_mode='cuda_graphs').eval()
    plain = GCViT(ARCH).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        outs = model(x)
        padded = plain(nn.functional.pad(x, (0, 26, 0, 14)))
    assert [out.shape[2:] for out in outs] == [(13, 18), (7, 9), (4, 5), (2, 3)]
    assert_close(outs[0], padded[0][:, :, :13, :18])
    assert not model.graphs.recorded


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(compile_mode='graphs', compile_sides=()), "'graphs'.*cuda_graphs"),
        (dict(compile_mode='cuda_graphs'), 'compile_sides'),
        (dict(compile_mode='cuda_graphs', compile_sides=(), with_cp=True), 'with_cp'),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, named):
    with pytest.raises(ArgumentError, match=named):
        GCViT(ARCH, **options)

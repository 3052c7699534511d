"""Compiled backbones: the same results, few compilations, checkpoints as ever."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.utils import digit_version

from gcvit_mm import GCViT
from gcvit_mm.models import compilation

pytestmark = [
    pytest.mark.slow,  # a C++ compiler runs for each kernel
    pytest.mark.skipif(
        digit_version(torch.__version__) < digit_version('2.5'), reason='needs torch 2.5'
    ),
]
ARCH = dict(
    dim=32, depths=(4, 1, 1, 1), num_heads=(1, 2, 4, 8), mlp_ratio=2, layer_scale=None,
    drop_path_rate=0.3,
)  # fmt: skip
OPTIONS = dict(out_indices=(0,), window_size=5)


@pytest.fixture
def compilations(monkeypatch):
    """How many blocks were compiled."""
    torch.compiler.reset()  # forgets the blocks of other tests
    done = []
    monkeypatch.setattr(compilation, 'print_log', lambda message, **_: done.append(message))
    return done


def test_images_of_many_sizes_need_one_compilation_for_each_kind_of_block(compilations):
    torch.manual_seed(0)
    plain = GCViT(ARCH, **OPTIONS).eval()
    compiled = GCViT(ARCH, **OPTIONS, compile_sides=(96, 128)).eval()
    compiled.load_state_dict(plain.state_dict())  # with the keys of a plain model
    with torch.no_grad():
        for height, width in ((90, 120), (70, 97), (96, 128), (81, 101)):
            x = torch.randn(1, 3, height, width)
            (out,) = compiled(x)
            (padded,) = plain(F.pad(x, (0, 128 - width, 0, 96 - height)))
            expected = padded[:, :, : -(-height // 4), : -(-width // 4)]
            assert torch.allclose(out, expected, atol=1e-5)
    assert len(compilations) == 2  # local and global, four blocks
    assert 'a feature map of 24 x 32' in compilations[0]


@pytest.mark.parametrize('with_cp', [False, True])
def test_training_gives_the_gradients_of_a_plain_model(compilations, with_cp):
    torch.manual_seed(0)
    arch = {**ARCH, 'drop_path_rate': 0.0}
    plain = GCViT(arch, **OPTIONS)
    compiled = GCViT(arch, **OPTIONS, with_cp=with_cp, compile_sides=())
    compiled.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, compiled):
        (out,) = model(x)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in compiled.named_parameters()}
    for name, parameter in plain.named_parameters():
        scale = parameter.grad.abs().max()
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-4 * scale.item()), name
    assert len(compilations) == 2


def test_paths_of_different_rates_are_dropped_by_the_same_code(compilations):
    torch.manual_seed(0)
    model = GCViT({**ARCH, 'drop_path_rate': 0.9}, **OPTIONS, compile_sides=())
    model.stages[0].blocks[0].drop_path.drops = True  # all blocks alike
    x = torch.randn(1, 3, 64, 64).expand(16, -1, -1, -1)
    (out,) = model(x)
    assert len({tuple(image.flatten()[:9].tolist()) for image in out}) > 4
    assert len(compilations) == 2

"""``randomness.deterministic=True``: no model calls an operator that PyTorch refuses on GPUs."""

import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from command_line import ENVIRONMENT, ROOT
from torch.testing import assert_close
from torchvision.ops import RoIAlign

from gcvit_mm.engine import deterministic

REFUSED = {
    'AvgPool3d': 'avg_pool3d_backward',
    'AdaptiveAvgPool2d': '_adaptive_avg_pool2d_backward',
    'AdaptiveAvgPool3d': '_adaptive_avg_pool3d_backward',
    'MaxPool3d': 'max_pool3d_with_indices_backward',
    'AdaptiveMaxPool2d': 'adaptive_max_pool2d_backward',
    'FractionalMaxPool2d': 'fractional_max_pool2d_backward',
    'FractionalMaxPool3d': 'fractional_max_pool3d_backward',
    'MaxUnpool1d': 'max_unpool2d',
    'MaxUnpool2d': 'max_unpool2d',
    'MaxUnpool3d': 'max_unpool3d',
    'interpolate': '_?upsample_(linear1d|bi(linear|cubic)2d|trilinear3d)(_aa)?_backward',
    'ReflectionPad1d': 'reflection_pad1d_backward',
    'ReflectionPad2d': 'reflection_pad2d_backward',
    'ReflectionPad3d': 'reflection_pad3d_backward',
    'NLLLoss': 'nll_loss2d_forward',  # that of rows has a fixed order
    'CTCLoss': '_ctc_loss_backward',
    'EmbeddingBag': '_embedding_bag_backward',
    'put_': 'put_',
    'histc': 'histc',
    'bincount': 'bincount.*weights',
    'median': 'median',
    'grid_sample': 'grid_sampler_[23]d_backward',
    'scatter_reduce': 'scatter_reduce.*prod',
    'resize_': 'quantized_resize_',
}
"""The operators behind the names in PyTorch's documentation."""
UNNAMED = ['index_reduce_?', 'replication_pad[123]d_backward', 'cudnn_grid_sampler_backward']
UNNAMED += ['_roi_align_backward', '_roi_pool_backward', '_deform_conv2d_backward']  # torchvision's

SMALL = ':model.backbone.arch=xxtiny:model.backbone.window_size=4'
DINO = f'{SMALL}:model.neck.in_channels=[128,256,512]:model.num_queries=20'
DINO += ':model.encoder.num_layers=1:model.decoder.num_layers=1'
MASK2FORMER = f'{SMALL}:model.decode_head.num_queries=10'
MASK2FORMER += ':model.decode_head.pixel_decoder.encoder.num_layers=1'

STEP = """
import sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
from gcvit_mm.benchmark import build_subject
from gcvit_mm.engine.deterministic import use_deterministic_operators

class List(TorchDispatchMode):
    called = set()
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.add(func._schema.name)
        return func(*args, **(kwargs or {}))

config, replaced = sys.argv[1:]
if replaced == 'yes':
    use_deterministic_operators('CPU')
settings = dict(batch=2, size=(64, 96), dtype=torch.float32, device=torch.device('cpu'))
for training in (False, True):
    subject = build_subject(config, training=training, **settings)
    torch.manual_seed(0)
    with List() as mode:
        subject.step()
torch.histc(torch.rand(9), 3)
norm = torch.stack([p.grad.norm() for p in subject.model.parameters() if p.grad is not None]).norm()
print('called', norm.item(), *sorted(mode.called))
"""


def step(config: str, replaced: bool) -> tuple[float, list[str]]:
    """The norm of gradients of a training step, and the operators of it and of a prediction."""
    command = [sys.executable, '-c', STEP, str(ROOT / config), 'yes' if replaced else 'no']
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    _, norm, *called = run.stdout.splitlines()[-1].split()
    return float(norm), [name.partition('::')[2] for name in called]


def refused(called: list[str]) -> list[str]:
    patterns = [*REFUSED.values(), *UNNAMED]
    return [name for name in called if any(re.fullmatch(p, name) for p in patterns)]


def test_all_operators_that_pytorch_refuses_are_known():
    _, _, text = torch.use_deterministic_algorithms.__doc__.partition('operations will throw a')
    names = re.findall(r':(?:class|func):`(.+?)`', text.partition('In addition')[0])
    listed = {name.split('.')[-1] for name in names}
    # Up to torch 2.13 its documentation has cumsum, which torch 2.10 computes in a fixed order.
    assert listed - {'RuntimeError', 'cumsum'} <= set(REFUSED)


@pytest.mark.parametrize(
    'config',
    [
        'configs/mask_rcnn_gcvit_nano_shapes.py',
        pytest.param('configs/upernet_gcvit_nano_shapes.py', marks=pytest.mark.slow),
        pytest.param('configs/dino_gcvit_large_coco.py' + DINO, marks=pytest.mark.slow),
        pytest.param(
            'configs/mask2former_gcvit_tiny_ade20k.py' + MASK2FORMER, marks=pytest.mark.slow
        ),
    ],
)
def test_no_training_step_or_prediction_calls_an_operator_that_pytorch_refuses(config):
    ordinary, called = step(config, replaced=False)
    assert refused(called), 'this model needs no replacement'
    norm, called = step(config, replaced=True)
    # PyTorch replaces it itself on GPUs.
    assert set(refused(called)) <= {'upsample_bilinear2d_backward'}
    assert norm == pytest.approx(ordinary, rel=1e-3)


def test_pytorch_resizes_by_deterministic_operators_on_gpus():
    x = torch.zeros(1, 1, 4, 4, device='meta', requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        out = F.interpolate(x, (7, 7), mode='bilinear')
    finally:
        torch.use_deterministic_algorithms(before)
    assert 'Upsample' not in type(out.grad_fn).__name__


# --- Values and gradients ---------------------------------------------------------------------


def assert_equal_with_gradients(ours, theirs, *inputs: torch.Tensor) -> None:
    outs = [function(*inputs) for function in (ours, theirs)]
    cotangent = torch.randn_like(outs[0])
    assert_close(*outs)
    learn = [x for x in inputs if x.requires_grad]
    assert_close(*(torch.autograd.grad(out, learn, cotangent) for out in outs))


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('align', [False, True])
@pytest.mark.parametrize('size', [(5, 7), (1, 1)])
def test_sampling(size, align, padding):
    torch.manual_seed(0)
    grid = numbers(2, 6, 4, 2)
    settings = dict(padding_mode=['zeros', 'border'][padding], align_corners=align)
    assert_equal_with_gradients(
        lambda x, grid: deterministic.grid_sampler_2d(x, grid, 0, padding, align),
        lambda x, grid: F.grid_sample(x, grid, **settings),
        numbers(2, 3, *size),
        grid,
    )


@pytest.mark.parametrize('size', [(9, 5), (1, 3), (6, 6)])
@pytest.mark.parametrize('bins', [(1, 1), (2, 3), (6, 6)])
def test_pooling(size, bins):
    assert_equal_with_gradients(
        lambda x: deterministic.adaptive_avg_pool2d(x, bins),
        lambda x: F.adaptive_avg_pool2d(x, bins),
        numbers(2, 3, *size),
    )


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize('weight', [None, torch.tensor([0.5, 2, 1], dtype=torch.float64)])
def test_loss_of_maps(reduction, weight):
    target = torch.randint(3, (2, 4, 5))
    target[0, 0] = 255
    number = ['none', 'mean', 'sum'].index(reduction)
    assert_equal_with_gradients(
        lambda x: deterministic.nll_loss2d(x, target, weight, number, 255)[0],
        lambda x: F.nll_loss(x, target, weight, ignore_index=255, reduction=reduction),
        numbers(2, 3, 4, 5),
    )


def test_maps_are_sampled_by_pytorch_where_no_gradients_are_computed():
    x, grid = numbers(2, 3, 5, 7), numbers(2, 6, 4, 2)
    with torch.no_grad():
        out = deterministic.grid_sampler_2d(x, grid, 0, 0, False)
        assert torch.equal(out, F.grid_sample(x, grid, align_corners=False))


@pytest.mark.parametrize(('bins', 'low', 'high'), [(5, 0, 4), (3, 0, 0), (4, -1, 1)])
def test_histograms(bins, low, high):
    for x in (torch.arange(5.0).repeat(3), torch.randn(100), torch.ones(4), torch.zeros(2, 0)):
        assert_close(deterministic.histc(x, bins, low, high), torch.histc(x, bins, low, high))


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('images', [[0, 2] * 10, [1], []], ids=['two', 'one', 'none'])
def test_gradients_of_roi_align(images, ratio, aligned, monkeypatch):
    monkeypatch.setattr(deterministic, 'MOST_ELEMENTS', 500)  # a few RoIs at a time
    torch.manual_seed(0)
    corners = 60 * torch.rand(len(images), 2, dtype=torch.float64) - 10
    boxes = torch.cat([corners, corners + 30 * torch.rand_like(corners)], dim=1)
    boxes[1:3, 2:] = boxes[1:3, :2]  # empty
    rois = torch.cat([torch.tensor(images).view(-1, 1), boxes], dim=1)
    x = numbers(3, 3, 11, 13)
    out = RoIAlign((3, 4), 0.25, ratio, aligned)(x, rois)
    grad = torch.randn_like(out)
    ours = deterministic.roi_align_backward(grad, rois, 0.25, 3, 4, *x.shape, ratio, aligned)
    assert_close(ours, torch.autograd.grad(out, x, grad)[0])

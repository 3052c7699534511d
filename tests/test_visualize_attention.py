"""The maps of attention are those of the modules, and lie where the windows lie."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import NANO, fail, succeed
from matplotlib.text import Text

from gcvit_mm import GCViT
from gcvit_mm.drawing import attention
from gcvit_mm.drawing.attention import attention_maps, attention_probabilities
from gcvit_mm.drawing.attention_figure import draw_attention
from gcvit_mm.errors import ArgumentError
from gcvit_mm.models.attention import WindowAttention
from gcvit_mm.models.windows import partition, relative_position_index, unpartition

SMALL = dict(
    dim=16,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 2, 4),
    mlp_ratio=2,
    layer_scale=None,
    drop_path_rate=0.3,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def windows_of(sizes, depths=(2, 2, 2, 2)):
    """A backbone whose attention is far from even."""
    model = GCViT({**SMALL, 'depths': depths}, window_size=sizes)
    for module in model.modules():
        if isinstance(module, WindowAttention):
            torch.nn.init.normal_(module.qkv.weight, std=0.4)
            torch.nn.init.normal_(module.qkv.bias)
            torch.nn.init.normal_(module.relative_position_bias_table)
    return model.eval()


@pytest.mark.parametrize('sizes', [(7, 7, 14, 7), 24])
@torch.no_grad()
def test_the_probabilities_give_the_output_of_every_attention(sizes):
    model = windows_of(sizes)
    calls = []
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.register_forward_hook(lambda *call: calls.append(call))
    model(torch.randn(2, 3, 123, 90))
    assert len(calls) == 8
    for module, (x, index, q_global), expected in calls:
        window, (height, width) = module.window_size, x.shape[1:3]
        weights = attention_probabilities(module, x, index, q_global)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
        padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        value = partition(module.qkv(padded), window, window)[..., -x.shape[3] :]
        heads = value.unflatten(-1, (weights.shape[2], -1)).transpose(2, 3)
        mixed = (weights @ heads).transpose(2, 3).flatten(3)
        out = unpartition(module.proj(mixed), window, window, padded.shape[2] // window)
        torch.testing.assert_close(out[:, :height, :width], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('cell', [(0, 0), (5, 8), (9, 3), (9, 8)])
def test_the_cell_that_windows_look_at_is_where_the_map_has_it(cell):
    # Keys are the cells themselves, every query asks for the one cell that is not zero.
    module = WindowAttention(4, 1, 4, global_query=True, impl='eager')
    torch.nn.init.zeros_(module.qkv.bias)
    with torch.no_grad():
        module.qkv.weight.copy_(torch.eye(4).repeat(2, 1))
    x = torch.zeros(1, 10, 9, 4)
    x[(0, *cell)] = 10
    query = torch.ones(1, 1, 16, 4)
    received = attention._received(module, x, relative_position_index(4), query)[0]
    assert received[cell] == pytest.approx(16, rel=1e-3)  # all of its window's attention
    rows, columns = (slice(i // 4 * 4, i // 4 * 4 + 4) for i in cell)
    assert received[rows, columns].sum() == pytest.approx(16, rel=1e-3)
    received[rows, columns] = 1
    torch.testing.assert_close(received, torch.ones(10, 9))  # the other windows: even
    index = relative_position_index(4)
    of_query = attention._of_query(module, x, index, query, query=cell)[0]
    assert of_query[cell] == pytest.approx(16, rel=1e-3)
    seen = ~of_query.isnan()
    assert seen[rows, columns].all() and seen.sum() == seen[rows, columns].sum()


@pytest.mark.parametrize(('sizes', 'window'), [((7, 7, 14, 7), (7, 7, 14, 7)), (24, (24,) * 4)])
def test_maps_have_the_cells_of_the_image_whatever_its_size(sizes, window):
    height, width = 75, 109
    maps = attention_maps(windows_of(sizes), torch.randn(2, 3, height, width), (100, 70))
    assert [stage.stride for stage in maps] == [4, 8, 16, 32]
    assert tuple(stage.window for stage in maps) == window
    for stage in maps:
        cells = 2, -(-height // stage.stride), -(-width // stage.stride)
        for values in (stage.local_attention, stage.global_attention, stage.reach):
            assert values.shape == cells
        row, column = stage.query
        assert row * stage.stride <= 70 < (row + 1) * stage.stride
        assert column * stage.stride <= 100 < (column + 1) * stage.stride
        assert not stage.local_attention[:, row, column].isnan().any()
        assert stage.global_attention.isfinite().all()
        torch.testing.assert_close(stage.reach.mean(dim=(1, 2)), torch.ones(2))


def test_an_image_has_its_maps_in_any_batch_and_the_backbone_stays_as_it_was():
    model = windows_of(7).train()
    images = torch.randn(2, 3, 64, 90)
    both, second = attention_maps(model, images), attention_maps(model, images[1:])
    for ours, alone in zip(both, second, strict=True):
        for name in ('local_attention', 'global_attention'):
            theirs = getattr(ours, name)[1:]
            own = getattr(alone, name)
            torch.testing.assert_close(theirs, own, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert model.training
    assert not any(stage.with_cp for stage in model.stages)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_reach_is_the_size_of_the_querys_derivative(monkeypatch):
    monkeypatch.setattr(attention, 'PROBES', 150)
    model = GCViT(SMALL, window_size=2, out_indices=(1,)).eval()
    image = torch.randn(1, 3, 32, 48)
    reach = attention_maps(model, image)[1].reach[0]

    def query(pixels):
        x = model.stages[0].downsample(model.stages[0](model.stem(pixels)))
        return model.stages[1].global_query(x).flatten()

    slopes = torch.autograd.functional.jacobian(query, image)[:, 0]  # (numbers, 3, H, W)
    squares = F.avg_pool2d(slopes.square().sum(dim=(0, 1))[None], 8)[0]
    exact = squares.sqrt() / squares.sqrt().mean()
    torch.testing.assert_close(reach, exact, rtol=0.15, atol=0.05)


def test_a_stage_of_one_block_has_no_global_attention():
    maps = attention_maps(windows_of(7, depths=(2, 1, 2, 1)), torch.randn(1, 3, 64, 64))
    assert [stage.global_attention is None for stage in maps] == [False, True, False, True]
    assert [stage.reach is None for stage in maps] == [False, True, False, True]


def test_a_point_beside_the_image_is_refused():
    with pytest.raises(ArgumentError, match=r'point 64, 3 .* 64 x 32 pixels'):
        attention_maps(windows_of(7), torch.randn(1, 3, 32, 64), (64, 3))


@pytest.mark.parametrize('size', [(64, 64), (60, 100), (100, 60)])
def test_the_figure_is_legible_on_a_phone(size):
    maps = attention_maps(windows_of(7), torch.randn(1, 3, *size))
    figure = draw_attention(np.zeros((*size, 3), np.uint8), maps, f'{"long_name_" * 20}.jpg')
    figure.canvas.draw()
    smallest = min(text.get_fontsize() for text in figure.findobj(Text))
    assert smallest / 72 * 390 / figure.get_figwidth() > 7  # pixels
    box = figure.get_tightbbox()
    assert box.x0 >= 0 and box.x1 <= figure.get_figwidth() + 0.02  # nothing is cut off


@pytest.mark.parametrize('title', ['cost_$5_$10.jpg', r'$\frac{$', '\x1b[31m$_^{$.jpg'])
def test_names_with_signs_of_formulas_are_drawn_as_they_are(title):
    maps = attention_maps(windows_of(7), torch.randn(1, 3, 32, 32))
    figure = draw_attention(np.zeros((32, 32, 3), np.uint8), maps, title)
    figure.canvas.draw()
    drawn = figure.get_suptitle()
    assert drawn == title.replace('\x1b', r'\x1b')
    plain = draw_attention(np.zeros((32, 32, 3), np.uint8), maps, drawn.replace('$', 'S'))
    plain.canvas.draw()
    widths = [f._suptitle.get_window_extent().width for f in (figure, plain)]
    assert widths[0] == pytest.approx(widths[1], rel=0.05)  # no sign is missing


def test_a_work_folder_is_enough_for_pictures_of_photos(trained, tmp_path):
    photo = cv2.resize(cv2.imread(str(trained.data / 'images/validation/000000.jpg')), (150, 90))
    cv2.imwrite(str(tmp_path / 'wide.png'), photo)
    out = tmp_path / 'out'
    output = succeed(
        'visualize_attention.py', trained.work_dir, tmp_path / 'wide.png', '--out', out
    )
    assert f'1 picture(s) in {out}' in output
    picture = cv2.imread(str(out / 'wide.png'))
    assert picture.shape[1] == 1600
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000  # the photo, maps in colour


def test_a_model_without_weights_is_refused(tmp_path):
    out = tmp_path / 'out'
    error = fail('visualize_attention.py', NANO, 'photo.png', '--out', out)
    assert 'needs a checkpoint' in error
    assert not out.exists()


@pytest.mark.slow
def test_photos_that_would_have_one_picture_are_refused(tmp_path):
    out = tmp_path / 'out'
    error = fail('visualize_attention.py', NANO, 'a/photo.png', 'b/photo.png', '--out', out)
    assert f'2 images have the output file {out}/photo.png' in error


@pytest.mark.slow
def test_a_point_beside_the_photo_is_named(trained, tmp_path):
    photo = trained.data / 'images/validation/000000.jpg'
    arguments = trained.work_dir, photo, '--point', '10,64', '--out', tmp_path / 'out'
    error = fail('visualize_attention.py', *arguments)
    assert f'point 10,64 is outside {photo.name} by ' in error
    assert '64 x 64 pixels' in error
    assert not list(tmp_path.glob('out/*'))

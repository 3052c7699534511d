"""The stand-in for mmcv's extension: each op against its definition, and mmdet's models on it."""

import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import gcvit_mm.compat.mmcv_extension
import gcvit_mm.compat.mmcv_ops
from gcvit_mm.errors import UserError

gcvit_mm.compat.mmcv_extension.install()

import mmcv.ops  # noqa: E402
from mmcv.ops.focal_loss import sigmoid_focal_loss  # noqa: E402
from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

ROOT = Path(__file__).parents[1]
DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
HALVES = [torch.float16, torch.bfloat16]

pytestmark = pytest.mark.skipif(
    gcvit_mm.compat.mmcv_ops.implementation() == 'mmcv ops: compiled mmcv._ext',
    reason='a compiled mmcv._ext is used instead of the stand-in',
)


def run_python(code, *args):
    """Run code in a fresh interpreter, where nothing has been imported, and return its output."""
    result = subprocess.run(
        [sys.executable, '-c', code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


# NMS ------------------------------------------------------------------------------------------


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20
    size = torch.rand(count, 2, generator=generator) * 15
    return torch.cat((corner, corner + size), dim=1), torch.rand(count, generator=generator)


def brute_force_nms(boxes, scores, threshold, offset):
    boxes = boxes.double().tolist()
    scores = scores.double().tolist()

    def area(x1, y1, x2, y2):
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    def iou(a, b):
        overlap = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
        union = area(*a) + area(*b) - overlap
        return overlap / union if union else 0

    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize('count', [1, 2, 80])
def test_nms_keeps_what_brute_force_keeps(count, threshold, offset, device):
    boxes, scores = random_boxes(count)
    dets, kept = mmcv.ops.nms(boxes.to(device), scores.to(device), threshold, offset=offset)
    assert kept.tolist() == brute_force_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets[:, :4].cpu(), boxes[kept.cpu()])


def test_nms_offset_changes_the_result_as_defined():
    # Overlap 1 of 3 without the offset, 4 of 8 with it.
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert mmcv.ops.nms(boxes, scores, 0.4, offset=0)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_of_no_boxes_keeps_none(offset, device):
    boxes = torch.empty(0, 4, device=device)
    dets, kept = mmcv.ops.nms(boxes, boxes.new_empty(0), 0.5, offset=offset)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('score_dtype', [torch.float32, *HALVES])
def test_nms_computes_half_precision_in_float32(score_dtype, dtype, device):
    boxes, scores = random_boxes(60)
    boxes, scores = boxes.to(dtype), scores.to(score_dtype)
    extension = sys.modules['mmcv._ext']
    kept = extension.nms(boxes.to(device), scores.to(device), iou_threshold=0.4, offset=0)
    assert kept.tolist() == brute_force_nms(boxes, scores, 0.4, 0)


@pytest.mark.parametrize('device', DEVICES)
def test_nms_computes_float64_in_float64(device):
    boxes, scores = random_boxes(60)
    boxes = boxes.double() + 2**27  # where float32 knows multiples of 16 only
    kept = mmcv.ops.nms(boxes.to(device), scores.to(device), 0.4)[1]
    assert kept.tolist() == brute_force_nms(boxes, scores, 0.4, 0)


@pytest.mark.parametrize('device', DEVICES)
def test_nms_takes_the_first_of_equal_scores_and_keeps_an_iou_equal_to_the_threshold(device):
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 1]], device=device)
    scores = torch.tensor([0.5, 0.5, 0.5], device=device)
    assert mmcv.ops.nms(boxes, scores, 0.5)[1].tolist() == [0, 2]


# RoIAlign -------------------------------------------------------------------------------------

# Several images; inside, on a border, outside, smaller than a pixel, and over the whole map.
ROIS = torch.tensor(
    [
        [0, 1.0, 1.5, 9.0, 7.0],
        [1, -4.0, -3.0, 5.0, 6.0],
        [1, 7.0, 6.0, 30.0, 25.0],
        [0, 40.0, 40.0, 50.0, 50.0],
        [1, 3.2, 3.1, 3.4, 3.3],
        [0, 0.0, 0.0, 20.0, 16.0],
    ]
)


def bilinear(image, y, x):
    """Value of a (C, H, W) image at a point; zero more than a pixel outside, else clamped."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(image.shape[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def brute_force_roi_align(features, rois, output_size, scale, sampling_ratio, aligned):
    features = features.double().cpu()
    rows, columns = output_size
    output = features.new_zeros(len(rois), features.shape[1], rows, columns)
    for n, (index, *box) in enumerate(rois.double().tolist()):
        shift = 0.5 if aligned else 0
        x1, y1, x2, y2 = (value * scale - shift for value in box)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        bin_width, bin_height = width / columns, height / rows
        across = sampling_ratio or -int(-bin_width // 1)
        down = sampling_ratio or -int(-bin_height // 1)
        for row in range(rows):
            for column in range(columns):
                for i in range(down):
                    for j in range(across):
                        y = y1 + (row + (i + 0.5) / down) * bin_height
                        x = x1 + (column + (j + 0.5) / across) * bin_width
                        value = bilinear(features[int(index)], y, x)
                        output[n, :, row, column] += value / (down * across)
    return output


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_roi_align_equals_brute_force(scale, sampling_ratio, aligned, device):
    torch.manual_seed(0)
    features = torch.randn(2, 3, 8, 10)
    pool = mmcv.ops.RoIAlign((3, 2), scale, sampling_ratio, aligned=aligned)
    output = pool(features.to(device), ROIS.to(device)).cpu()
    expected = brute_force_roi_align(features, ROIS, (3, 2), scale, sampling_ratio, aligned)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_gradient_is_the_derivative(aligned, device):
    torch.manual_seed(0)
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    rois = ROIS.double().to(device)
    pool = mmcv.ops.RoIAlign((2, 3), 0.5, 0, aligned=aligned)
    assert torch.autograd.gradcheck(lambda x: pool(x, rois), features, nondet_tol=1e-9)


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_of_no_rois_is_empty_and_its_gradient_zero(device):
    features = torch.randn(2, 3, 8, 8, device=device, requires_grad=True)
    output = mmcv.ops.RoIAlign(7)(features, features.new_empty(0, 5))
    assert output.shape == (0, 3, 7, 7)
    output.sum().backward()
    assert features.grad.count_nonzero() == 0


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('roi_dtype', [torch.float32, *HALVES])
@pytest.mark.parametrize('autocast', [True, False])
def test_roi_align_takes_any_mix_of_half_and_float(autocast, roi_dtype, dtype, device):
    torch.manual_seed(0)
    rois = ROIS.to(device, roi_dtype)
    features = torch.randn(2, 3, 8, 10, device=device).to(dtype)
    results = []
    for x in (features.clone().requires_grad_(), features.float().requires_grad_()):
        with torch.autocast(device, enabled=autocast):
            output = mmcv.ops.RoIAlign((3, 2))(x, rois)
        output.float().square().sum().backward()
        assert output.dtype == x.grad.dtype == x.dtype
        results.append((output.float(), x.grad.float()))
    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=2e-2)


def test_roi_align_by_maximum_is_refused_by_name():
    features = torch.randn(2, 1, 8, 8)
    with pytest.raises(UserError, match='roi_align with pool_mode'):
        mmcv.ops.RoIAlign(2, pool_mode='max')(features, ROIS)


# Deformable attention -------------------------------------------------------------------------

SHAPES = [(3, 4), (2, 2)]


def attention_inputs(device, dtype=torch.float64):
    torch.manual_seed(0)
    value = torch.randn(2, 16, 2, 4)
    locations = torch.rand(2, 5, 2, 2, 3, 2) * 1.4 - 0.2
    weights = torch.rand(2, 5, 2, 6).softmax(-1).view(2, 5, 2, 2, 3)
    tensors = [x.to(device, dtype).requires_grad_() for x in (value, locations, weights)]
    return tensors, torch.tensor(SHAPES, device=device), torch.tensor([0, 12], device=device)


@pytest.mark.parametrize('device', DEVICES)
def test_deformable_attention_and_its_gradients_equal_those_of_mmcvs_pytorch_version(device):
    (value, locations, weights), shapes, starts = attention_inputs(device)
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(output, expected)
    factor = torch.randn_like(output)
    inputs = (value, locations, weights)
    grads = torch.autograd.grad((output * factor).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * factor).sum(), inputs)
    assert all(grad.count_nonzero() for grad in grads)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', HALVES)
def test_deformable_attention_in_half_precision_is_close_to_float32(dtype, device):
    inputs, shapes, starts = attention_inputs(device, dtype)
    value, locations, weights = inputs
    with torch.autocast(device):
        output = MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, locations, weights, 64
        )
    assert output.dtype == dtype
    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected = multi_scale_deformable_attn_pytorch(exact[0], shapes, *exact[1:])
    torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)
    grads = torch.autograd.grad(output.sum(), inputs)
    assert all(grad.dtype == dtype for grad in grads)
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected.sum(), exact), strict=True):
        torch.testing.assert_close(grad.float(), expected_grad, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('device', DEVICES)
def test_deformable_attention_module_trains(device):
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(16, 2, 2, 3, batch_first=True).to(device)
    query = torch.randn(2, 5, 16, device=device)
    value = torch.randn(2, 16, 16, device=device)
    output = layer(
        query,
        value=value,
        reference_points=torch.rand(2, 5, 2, 2, device=device),
        spatial_shapes=torch.tensor(SHAPES, device=device),
        level_start_index=torch.tensor([0, 12], device=device),
    )
    output.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert layer.sampling_offsets.weight.grad.count_nonzero()


# Focal loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.75)])
def test_focal_loss_equals_its_definition(gamma, alpha, device):
    torch.manual_seed(0)
    logits = (torch.randn(6, 4, dtype=torch.float64, device=device) * 3).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4], device=device)  # 4 is background
    output = sigmoid_focal_loss(logits, target, gamma, alpha, None, 'none')
    one_hot = F.one_hot(target, 5)[:, :4].double()
    p = logits.sigmoid() * one_hot + (1 - logits.sigmoid()) * (1 - one_hot)
    weight = alpha * one_hot + (1 - alpha) * (1 - one_hot)
    torch.testing.assert_close(output, -weight * (1 - p) ** gamma * p.log())
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, target, gamma, alpha, None, 'none'), logits
    )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, *HALVES])
def test_focal_loss_of_extreme_logits_is_finite(dtype, device):
    logits = torch.tensor([[-100.0, 100], [100, -100]], device=device).to(dtype).requires_grad_()
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 0], device=device), 2.0, 0.25, None, 'sum')
    # The first row is wrong by 100 twice, the second is right.
    torch.testing.assert_close(loss.float().item(), 100.0, rtol=1e-2, atol=0)
    loss.backward()
    expected = torch.tensor([[-0.25, 0.75], [0, 0]], device=device, dtype=dtype)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-2, atol=1e-6)


def test_focal_loss_with_class_weights_is_refused():
    target = torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match='class weights'):
        sigmoid_focal_loss(torch.zeros(2, 3), target, 2.0, 0.25, torch.ones(3), 'none')


# Soft-NMS, overlaps and matches ---------------------------------------------------------------


def iou_of(a, b, offset=0, iof=False):
    def area(x1, y1, x2, y2):
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    inter = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return inter / (area(*a) if iof else area(*a) + area(*b) - inter)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_lowers_scores_as_defined(method, offset):
    boxes, scores = random_boxes(40, seed=1)
    expected, left = [], dict(enumerate(scores.double().tolist()))
    while left:
        best = max(left, key=left.get)
        expected.append((best, left.pop(best)))
        for other in list(left):
            iou = iou_of(boxes[best].tolist(), boxes[other].tolist(), offset)
            if method == 'gaussian':
                left[other] *= math.exp(-(iou**2) / 0.5)
            elif iou >= 0.3:
                left[other] *= 0 if method == 'naive' else 1 - iou
            if left[other] < 0.05:
                del left[other]
    dets, kept = mmcv.ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert kept.tolist() == [index for index, _ in expected]
    assert torch.equal(dets[:, :4], boxes[kept])
    assert dets[:, 4].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)


def test_soft_nms_of_no_box_and_of_boxes_without_area():
    assert len(mmcv.ops.soft_nms(torch.empty(0, 4), torch.empty(0))[1]) == 0
    points = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]])
    assert len(mmcv.ops.soft_nms(points, torch.tensor([0.5, 0.4]), method='gaussian')[1]) == 2


@pytest.mark.parametrize('dtype', [torch.float32, *HALVES])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_overlaps_are_those_of_single_pairs(mode, offset, dtype):
    boxes, others = (random_boxes(12, seed)[0].to(dtype) for seed in (0, 1))
    got = mmcv.ops.bbox_overlaps(boxes, others, mode, offset=offset)
    aligned = mmcv.ops.bbox_overlaps(boxes, others, mode, aligned=True, offset=offset)
    assert got.dtype == dtype
    expected = torch.tensor(
        [
            [iou_of(a, b, offset, mode == 'iof') for b in others.double().tolist()]
            for a in boxes.double().tolist()
        ]
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.float(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(aligned.float(), expected.diagonal(), atol=tolerance, rtol=0)


def test_matches_are_the_boxes_that_each_kept_box_suppresses():
    boxes, scores = random_boxes(50)
    left = sorted(range(50), key=lambda i: -scores[i])
    expected = []
    while left:
        near = [j for j in left if j == left[0] or iou_of(boxes[left[0]], boxes[j]) >= 0.3]
        expected.append(near)
        left = [j for j in left if j not in near]
    groups = mmcv.ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.3)
    assert [group.tolist() for group in groups] == expected


# Layers ---------------------------------------------------------------------------------------


def test_offsets_of_another_size_are_read_as_by_mmcvs_kernel():
    """DyHead applies those of one level to a coarser one."""
    x, offset, mask, weight, bias = deform_inputs(1, 1, 1)
    small = x[..., :3, :4].detach()
    read = offset.flatten(1)[:, : 18 * 12].view(2, 18, 3, 4)
    scales = mask.flatten(1)[:, : 9 * 12].view(2, 9, 3, 4)
    got = mmcv.ops.modulated_deform_conv2d(small, offset, mask, weight, bias, 1, 1)
    torch.testing.assert_close(
        got, brute_force_deform_conv(small, read, weight, scales, bias, 1, 1, 1, 1)
    )
    got.sum().backward()
    assert mask.grad.flatten(1)[:, 9 * 12 :].count_nonzero() == 0


def brute_force_deform_conv(x, offset, weight, mask, bias, stride, padding, dilation, groups):
    """The definition, a pixel and a tap at a time; ``groups`` share offsets."""
    batch, _, height, width = x.shape
    outputs, per_group, rows, columns = weight.shape
    shape = offset.shape[2:]
    found = torch.zeros(batch, outputs, *shape, dtype=x.dtype)
    channels_per_offset = x.shape[1] // groups
    for n, o, i, j in product(range(batch), range(outputs), range(shape[0]), range(shape[1])):
        total = bias[o] if bias is not None else 0
        first = o // (outputs // (x.shape[1] // per_group)) * per_group
        for c, r, s in product(range(per_group), range(rows), range(columns)):
            group = (first + c) // channels_per_offset
            tap = (group * rows + r) * columns + s
            y = i * stride - padding + r * dilation + offset[n, 2 * tap, i, j].item()
            z = j * stride - padding + s * dilation + offset[n, 2 * tap + 1, i, j].item()
            value = 0
            top, left = math.floor(y), math.floor(z)
            for a, b in product((top, top + 1), (left, left + 1)):
                if 0 <= a < height and 0 <= b < width:
                    share = (1 - abs(y - a)) * (1 - abs(z - b))
                    value = value + x[n, first + c, a, b] * share
            scale = 1 if mask is None else mask[n, tap, i, j]
            total = total + weight[o, c, r, s] * value * scale
        found[n, o, i, j] = total
    return found


def deform_inputs(groups, deform_groups, stride, dtype=torch.float64, device='cpu'):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5, dtype=dtype)
    size = [(side + 2 - 2 - 1) // stride + 1 for side in x.shape[2:]]
    offset = torch.randn(2, 18 * deform_groups, *size, dtype=dtype) * 2
    mask = torch.rand(2, 9 * deform_groups, *size, dtype=dtype)
    weight = torch.randn(4, 4 // groups, 3, 3, dtype=dtype)
    bias = torch.randn(4, dtype=dtype)
    return [t.to(device).requires_grad_() for t in (x, offset, mask, weight, bias)]


@pytest.mark.parametrize(('groups', 'deform_groups', 'stride'), [(1, 1, 1), (2, 2, 2)])
def test_deformable_convolutions_compute_their_definition(groups, deform_groups, stride):
    x, offset, mask, weight, bias = deform_inputs(groups, deform_groups, stride)
    plain = mmcv.ops.deform_conv2d(x, offset, weight, stride, 1, 1, groups, deform_groups)
    args = (stride, 1, 1, deform_groups)
    expected = brute_force_deform_conv(x, offset, weight, None, None, *args)
    torch.testing.assert_close(plain, expected)
    settings = (stride, 1, 1, groups, deform_groups)
    modulated = mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *settings)
    expected = brute_force_deform_conv(x, offset, weight, mask, bias, *args)
    torch.testing.assert_close(modulated, expected)


@pytest.mark.parametrize(('groups', 'deform_groups', 'stride'), [(1, 1, 1), (2, 2, 2)])
def test_gradients_of_deformable_convolutions(groups, deform_groups, stride):
    x, offset, mask, weight, bias = deform_inputs(groups, deform_groups, stride)
    settings = (stride, 1, 1, groups, deform_groups)
    assert torch.autograd.gradcheck(
        lambda *inputs: mmcv.ops.deform_conv2d(*inputs, *settings), (x, offset, weight),
        fast_mode=True,
    )  # fmt: skip
    assert torch.autograd.gradcheck(
        lambda *inputs: mmcv.ops.modulated_deform_conv2d(*inputs, *settings),
        (x, offset, mask, weight, bias), fast_mode=True,
    )  # fmt: skip
    without_bias = (x, offset, mask, weight, None)
    mmcv.ops.modulated_deform_conv2d(*without_bias, *settings).sum().backward()
    assert mask.grad.count_nonzero()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', HALVES)
def test_layers_take_half_precision(dtype, device):
    x, offset, mask, weight, bias = deform_inputs(1, 1, 1, torch.float32, device)
    for layer, inputs in (
        (mmcv.ops.deform_conv2d, (x, offset, weight, 1, 1)),
        (mmcv.ops.modulated_deform_conv2d, (x, offset, mask, weight, bias, 1, 1)),
        (mmcv.ops.carafe, (*carafe_inputs(torch.float32, device), 3, 2, 2)),
        (mmcv.ops.roi_pool, (x, ROIS[:2].to(device) / 4, 3)),
    ):
        halves = [
            t.detach().to(dtype).requires_grad_() if isinstance(t, torch.Tensor) else t
            for t in inputs
        ]
        output = layer(*halves)
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), layer(*inputs), atol=0.3, rtol=0.05)
        output.sum().backward()
        assert halves[0].grad.dtype == dtype and halves[0].grad.isfinite().all()


def carafe_inputs(dtype=torch.float64, device='cpu'):
    torch.manual_seed(0)
    features = torch.randn(2, 4, 3, 5, dtype=dtype, device=device)
    masks = torch.randn(2, 18, 6, 10, dtype=dtype, device=device)
    return features.requires_grad_(), masks.requires_grad_()


def test_carafe_reassembles_neighbours_and_has_its_gradients():
    features, masks = carafe_inputs()
    got = mmcv.ops.carafe(features, masks, 3, 2, 2)
    padded = F.pad(features, (1, 1, 1, 1))
    for n, c, y, x in product(range(2), range(4), range(6), range(10)):
        window = padded[n, c, y // 2 : y // 2 + 3, x // 2 : x // 2 + 3]
        weights = masks[n, 9 * (c // 2) : 9 * (c // 2) + 9, y, x].view(3, 3)
        torch.testing.assert_close(got[n, c, y, x], (window * weights).sum())
    torch.testing.assert_close(mmcv.ops.carafe_naive(features, masks, 3, 2, 2), got)
    assert torch.autograd.gradcheck(
        lambda *inputs: mmcv.ops.carafe(*inputs, 3, 2, 2), (features, masks), fast_mode=True
    )


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_masked_convolution_computes_a_convolution_where_the_mask_is(share):
    torch.manual_seed(0)
    layer = mmcv.ops.MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    x, mask = torch.randn(1, 3, 7, 9), (torch.rand(1, 7, 9) < share).float()
    torch.testing.assert_close(layer(x, mask), layer(x) * mask, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_roi_pool_takes_the_maxima_of_the_pixels_that_a_bin_touches(scale, device):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 20, dtype=torch.float64, device=device, requires_grad=True)
    rois = ROIS.double().to(device)
    got = mmcv.ops.roi_pool(x, rois, (3, 4), scale)
    weights = torch.randn_like(got)
    expected, grad = torch.zeros_like(got), torch.zeros_like(x)
    for n, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = corners[0], corners[1], corners[2] + 1, corners[3] + 1
        x1, y1, x2, y2 = (value * scale for value in (x1, y1, x2, y2))
        for c, i, j in product(range(3), range(3), range(4)):
            ys = [y for y in range(16) if math.floor(y1 + (y2 - y1) * i / 3) <= y
                  < math.ceil(y1 + (y2 - y1) * (i + 1) / 3)]  # fmt: skip
            xs = [z for z in range(20) if math.floor(x1 + (x2 - x1) * j / 4) <= z
                  < math.ceil(x1 + (x2 - x1) * (j + 1) / 4)]  # fmt: skip
            if ys and xs:
                best = max(product(ys, xs), key=lambda p: x[int(image), c, p[0], p[1]].item())
                expected[n, c, i, j] = x[int(image), c, best[0], best[1]]
                grad[int(image), c, best[0], best[1]] += weights[n, c, i, j]
    assert torch.equal(got, expected)
    (got * weights).sum().backward()
    torch.testing.assert_close(x.grad, grad)


# The module and its installation --------------------------------------------------------------


def test_calling_an_op_that_is_missing_names_it_and_the_cure():
    with pytest.raises(UserError, match=r'box_iou_rotated .*MMCV_WITH_OPS=1'):
        mmcv.ops.box_iou_rotated(torch.rand(3, 5), torch.rand(3, 5))
    with pytest.raises(AttributeError):
        _ = sys.modules['mmcv._ext'].__wrapped__


def test_the_stand_in_passes_for_an_extension():
    assert gcvit_mm.compat.mmcv_ops.implementation().startswith('mmcv ops: torchvision ')
    assert mmcv.utils.collect_env()['MMCV Compiler'].startswith('not compiled')
    assert mmcv.ops.get_compiling_cuda_version().startswith('not compiled')


def test_installing_twice_adds_one_finder():
    gcvit_mm.compat.mmcv_extension.install()
    names = [type(finder).__name__ for finder in sys.meta_path]
    assert names.count('_StandIn') == 1


def test_loading_the_stand_in_logs_one_line():
    output = run_python("""
import gcvit_mm.compat.mmcv_extension
import gcvit_mm.compat.mmcv_ops
gcvit_mm.compat.mmcv_extension.install()
import mmcv
print('mmcv is imported')
import mmcv.ops
from mmcv.ops import nms
""")
    before, after = output.split('mmcv is imported')
    assert 'mmcv ops:' not in before
    assert after.count('INFO - mmcv ops: torchvision') == 1


def test_a_compiled_extension_is_left_untouched(tmp_path):
    (tmp_path / '_ext.py').write_text("compiled = 'yes'\n")
    run_python(
        """
import sys
import gcvit_mm.compat.mmcv_extension
import gcvit_mm.compat.mmcv_ops
gcvit_mm.compat.mmcv_extension.install()
import mmcv
mmcv.__path__.append(sys.argv[1])
import mmcv._ext
assert mmcv._ext.compiled == 'yes'
assert not hasattr(mmcv._ext, 'nms')
assert gcvit_mm.compat.mmcv_ops.implementation() == 'mmcv ops: compiled mmcv._ext'
""",
        tmp_path,
    )


def test_without_torchvision_only_its_ops_fail_and_say_so():
    run_python("""
import sys
import gcvit_mm.compat.mmcv_extension
import gcvit_mm.compat.mmcv_ops
from gcvit_mm.errors import UserError
gcvit_mm.compat.mmcv_extension.install()
sys.modules['torchvision'] = None
import mmcv.ops
import torch
assert 'nms and roi_align need torchvision' in gcvit_mm.compat.mmcv_ops.implementation()
try:
    mmcv.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5)
except UserError as error:
    assert 'need torchvision: install' in str(error)
else:
    raise AssertionError('nms ran without torchvision')
""")


def test_modules_imported_too_early_are_repaired():
    run_python("""
import importlib, sys
for package in ('mmdet.models', 'mmseg.models'):
    try:
        importlib.import_module(package)
    except ImportError:
        pass  # some modules fall back on placeholders, others fail
assert 'mmcv' in sys.modules and 'mmcv.ops' not in sys.modules

import gcvit_mm.compat.mmcv_extension
import gcvit_mm.compat.mmcv_ops
gcvit_mm.compat.mmcv_extension.install()

import mmcv.ops
import mmdet.models
from mmdet.models.dense_heads import base_dense_head
from mmdet.models.layers.transformer import deformable_detr_layers
from mmdet.structures.mask import structures
from mmseg.models.decode_heads import san_head
from mmseg.models.losses import focal_loss
from mmseg.models.utils import get_uncertain_point_coords_with_randomness
assert structures.roi_align is mmcv.ops.roi_align
assert base_dense_head.batched_nms is mmcv.ops.batched_nms
attention = mmcv.ops.MultiScaleDeformableAttention
assert deformable_detr_layers.MultiScaleDeformableAttention is attention
assert focal_loss._sigmoid_focal_loss is mmcv.ops.sigmoid_focal_loss
assert san_head.point_sample is mmcv.ops.point_sample
function = san_head.get_uncertain_point_coords_with_randomness
assert function is get_uncertain_point_coords_with_randomness
""")


TOO_LATE = """
try:
    import gcvit_mm.compat.mmcv_extension
    gcvit_mm.compat.mmcv_extension.install()
except RuntimeError as error:
    assert type(error).__name__ == 'UserError'
    assert sys.argv[1] in str(error)
    assert 'first in custom_imports' in str(error)
else:
    raise AssertionError('no error')
assert 'mmcv._ext' not in sys.modules
"""


def test_a_class_derived_from_a_placeholder_is_an_error(tmp_path):
    (tmp_path / 'mmlate.py').write_text("""
try:
    from mmcv.ops import DeformConv2d
except ImportError:

    class DeformConv2d:
        pass


class Derived(DeformConv2d):
    pass
""")
    code = 'import sys\nsys.path.append(sys.argv[2])\nimport mmlate\n' + TOO_LATE
    run_python(code, 'mmlate', tmp_path)


def test_mmcv_ops_loaded_without_its_extension_is_an_error():
    fake = "import mmcv, sys, types\nsys.modules['mmcv.ops'] = types.ModuleType('mmcv.ops')\n"
    run_python(fake + TOO_LATE, 'mmcv.ops is already loaded')


# mmdet's models -------------------------------------------------------------------------------

# Small, with low scores kept, which are all that an untrained model has.
MODELS = {
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': {
        'train_cfg.rpn_proposal.max_per_img': 50,
        'test_cfg.rpn.max_per_img': 20,
        'test_cfg.rcnn.score_thr': 0.0,
        'test_cfg.rcnn.max_per_img': 5,
    },
    'retinanet/retinanet_r50_fpn_1x_coco.py': {
        'test_cfg.nms_pre': 50,
        'test_cfg.score_thr': 0.0,
        'test_cfg.max_per_img': 5,
    },
    'dino/dino-4scale_r50_8xb2-12e_coco.py': {
        'num_queries': 20,
        'encoder.num_layers': 1,
        'decoder.num_layers': 2,
        'dn_cfg.group_cfg.num_dn_queries': 10,
        'test_cfg.max_per_img': 5,
    },
}


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('path', MODELS)
def test_mmdets_model_trains_and_predicts(path, device):
    train_and_predict(path, device, MODELS[path])


def train_and_predict(path, device, changes, backbone=None):
    from mmdet.registry import MODELS as REGISTRY
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.hub import get_config
    from mmengine.logging import MessageHub

    register_all_modules()
    config = Config({'model': get_config(f'mmdet::{path}').model})
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    if backbone:
        config.model.backbone = backbone
        first = config.model.neck[0] if isinstance(config.model.neck, list) else config.model.neck
        first.in_channels = [32, 64, 128, 256]
    else:
        config.model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False)
    torch.manual_seed(0)
    model = REGISTRY.build(config.model)
    model.init_weights()  # DINO builds some parameters of uninitialised memory
    model = model.to(device).train()
    MessageHub.get_current_instance().update_info('epoch', 0)  # as a training does, for TOOD
    with_mask = 'mask' in path
    batch = demo_mm_inputs(2, [[3, 96, 96]] * 2, with_mask=with_mask)

    inputs = model.data_preprocessor(batch, training=True)
    loss, logged = model.parse_losses(model(**inputs, mode='loss'))
    assert all(value.isfinite().all() for value in logged.values())
    loss.backward()
    assert next(model.backbone.parameters()).grad.count_nonzero()

    model.eval()
    with torch.no_grad():
        singles = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(2)]
        samples = [model.test_step(single)[0] for single in singles]
    for sample in samples:
        predictions = sample.pred_instances
        assert len(predictions) == 5
        assert predictions.bboxes.isfinite().all()
        if with_mask:
            assert predictions.masks.shape == (5, 96, 96)


GC_VIT = dict(
    type='GCViT',
    arch=dict(dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=2, layer_scale=None,
              drop_path_rate=0.0),
    window_size=4,
)  # fmt: skip
ONE_STAGE = {'test_cfg.nms_pre': 50, 'test_cfg.score_thr': 0.0, 'test_cfg.max_per_img': 5}
TWO_STAGES = {'test_cfg.rpn.max_per_img': 20, 'test_cfg.rcnn.score_thr': 0.0,
              'test_cfg.rcnn.max_per_img': 5}  # fmt: skip
STOCK = {
    'dyhead/atss_r50_fpn_dyhead_1x_coco.py': ONE_STAGE,
    'tood/tood_r50_fpn_1x_coco.py': ONE_STAGE,
    'reppoints/reppoints-moment_r50_fpn_1x_coco.py': ONE_STAGE,
    'vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py': ONE_STAGE,
    'guided_anchoring/ga-faster-rcnn_r50-caffe_fpn_1x_coco.py': TWO_STAGES,
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py': TWO_STAGES,
    'carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py': TWO_STAGES,
    'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py': TWO_STAGES,
}


@pytest.mark.parametrize(
    'path', [pytest.param(p, marks=[pytest.mark.slow] * ('carafe' in p)) for p in STOCK]
)
def test_mmdets_models_of_these_operations_train_with_gc_vit(path):
    train_and_predict(path, 'cpu', STOCK[path], dict(GC_VIT))


@pytest.mark.slow
@pytest.mark.parametrize('version', ['dcn/mask-rcnn_r50-dconv', 'dcnv2/mask-rcnn_r50-mdconv'])
def test_deformable_backbones_train(version):
    train_and_predict(f'{version}-c3-c5_fpn_1x_coco.py', 'cpu', TWO_STAGES)

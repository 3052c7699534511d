"""The stand-in for mmcv's extension: each op against its definition, and mmdet's models on it."""

import subprocess
import sys
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


# The module and its installation --------------------------------------------------------------


def test_calling_an_op_that_is_missing_names_it_and_the_cure():
    with pytest.raises(UserError, match=r'nms_match .*MMCV_WITH_OPS=1'):
        mmcv.ops.nms_match(torch.rand(3, 5), 0.5)
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
    from mmdet.registry import MODELS as REGISTRY
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.hub import get_config

    register_all_modules()
    config = Config({'model': get_config(f'mmdet::{path}').model})
    config.merge_from_dict({f'model.{key}': value for key, value in MODELS[path].items()})
    config.model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False)
    torch.manual_seed(0)
    model = REGISTRY.build(config.model)
    model.init_weights()  # DINO builds some parameters of uninitialised memory
    model = model.to(device).train()
    with_mask = 'mask' in path
    batch = demo_mm_inputs(2, [[3, 96, 96]] * 2, with_mask=with_mask)

    inputs = model.data_preprocessor(batch, training=True)
    loss, logged = model.parse_losses(model(**inputs, mode='loss'))
    assert all(value.isfinite().all() for value in logged.values())
    loss.backward()
    assert model.backbone.conv1.weight.grad.count_nonzero()

    model.eval()
    with torch.no_grad():
        samples = model.test_step(batch)
    for sample in samples:
        predictions = sample.pred_instances
        assert len(predictions) == 5
        assert predictions.bboxes.isfinite().all()
        if with_mask:
            assert predictions.masks.shape == (5, 96, 96)

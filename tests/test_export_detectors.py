"""Exported detectors predict what mmdet does, and files that predict something else are refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import NANO, fail, succeed
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from PIL import Image

from gcvit_mm import Predictor
from gcvit_mm.config import build_model, read_config
from gcvit_mm.errors import UserError
from gcvit_mm.export.build import build_graph
from gcvit_mm.export.check import compare, read_images, stack
from gcvit_mm.export.files import load
from gcvit_mm.export.operators import NONE
from gcvit_mm.export.picture import FilePredictor

SIZE = (90, 121)  # no multiples of 32


def config_of(name: str) -> Config:
    cfg = read_config(NANO)
    if name == 'faster_rcnn':
        cfg.model.update(type='FasterRCNN')
        cfg.model.roi_head.update(mask_roi_extractor=None, mask_head=None)
    elif name == 'one_class':
        cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 1
    elif name == 'class_agnostic':
        cfg.model.roi_head.bbox_head.reg_class_agnostic = True
        cfg.model.roi_head.mask_head.class_agnostic = True
    elif name == 'cascade_mask_rcnn':
        cascade = Config.fromfile('configs/_base_/cascade_mask_rcnn_gcvit_tiny.py').model
        small = dict(in_channels=64, conv_out_channels=8, fc_out_channels=64, num_classes=3)
        heads = [{**head, **small} for head in cascade.roi_head.bbox_head]
        head = {**cascade.roi_head, **cfg.model.roi_head, 'bbox_head': heads}
        head.update(type='CascadeRoIHead', num_stages=3)
        cfg.model.update(type='CascadeRCNN', roi_head=head)
        cfg.model.train_cfg = cascade.train_cfg
    elif name == 'retinanet':
        cfg.model = Config.fromfile('configs/_base_/retinanet_gcvit_nano.py').model
        cfg.model.bbox_head.num_classes = 7
    return cfg


def make(name: str) -> tuple:
    """A detector with random weights whose objects differ in score and box, and its graph."""
    torch.manual_seed(2)
    model = revert_sync_batchnorm(build_model(config_of(name))).eval()
    head = model.bbox_head if name == 'retinanet' else model.roi_head
    with torch.no_grad():
        for key, parameter in head.named_parameters():
            if key.endswith(('fc_cls.weight', 'fc_reg.weight')):
                parameter.mul_(3)
            elif name == 'retinanet':
                parameter.normal_(std=0.035)
    return model, build_graph(model, 'detection', features=False, argmax=False, size=SIZE).eval()


@pytest.mark.parametrize(
    'name',
    ['mask_rcnn', 'faster_rcnn', 'cascade_mask_rcnn', 'retinanet', 'one_class', 'class_agnostic'],
)
def test_the_graph_gives_the_boxes_of_mmdet_in_their_order(name):
    model, graph = make(name)
    images = stack(read_images(read_config(NANO), None)[:2], SIZE, 3)
    meta = dict(img_shape=SIZE, ori_shape=SIZE, scale_factor=(1.0, 1.0))
    data = model.data_preprocessor(
        dict(inputs=graph.images(images), data_samples=[DetDataSample(metainfo=meta)] * 2)
    )
    with torch.no_grad():
        maps = model.extract_feat(data['inputs'])
        samples = [DetDataSample(metainfo=sample.metainfo) for sample in data['data_samples']]
        if name == 'retinanet':
            expected = model.bbox_head.predict(maps, samples, rescale=True)
        else:
            proposals = model.rpn_head.predict(maps, samples, rescale=False)
            expected = model.roi_head.predict(maps, proposals, samples, rescale=True)
        thresholds = tuple(reversed(graph.inputs().values()))
        boxes, scores, labels, masks = graph.detect(maps, SIZE, thresholds)
    for number, own in enumerate(expected):
        count = len(own)
        assert count > 10
        assert (scores[number, count:] == NONE).all()
        torch.testing.assert_close(scores[number, :count], own.scores)
        torch.testing.assert_close(boxes[number, :count], own.bboxes, atol=1e-3, rtol=0)
        assert torch.equal(labels[number, :count], own.labels)
        assert (masks is None) == ('masks' not in own)


def run_of(graph):
    """The graph in PyTorch, as a file would be called."""
    defaults = graph.inputs()

    def run(image, **thresholds):
        with torch.no_grad():
            return graph(image, **{**defaults, **thresholds})

    return run


@pytest.fixture(scope='module')
def proven() -> tuple:
    _, graph = make('mask_rcnn')
    images = read_images(read_config(NANO), None)
    comparisons = compare(graph, run_of(graph), images)
    assert max(one.excess for one in comparisons) < 1
    assert sum(len(x['boxes']) for one in comparisons for x in one.expected) > 20
    return graph, images


def other(**thresholds):
    given = {name: torch.tensor([value]) for name, value in thresholds.items()}
    return lambda run, image, **more: run(image, **given, **more)


def changed(name, change):
    return lambda run, *x, **more: {**(out := run(*x, **more)), name: change(out[name])}


BREAKS = {
    'NMS threshold': other(iou_threshold=0.3),
    'score threshold': other(score_threshold=0.3),
    'transposed masks': changed('masks', lambda x: x.transpose(2, 3)),
    'masks of other objects': changed('masks', lambda x: x.roll(1, dims=1)),
    'mixed batch': lambda run, *x, **more: {k: v.flip(0) for k, v in run(*x, **more).items()},
    'mixed boxes': changed('boxes', lambda x: x.flip(0)),
    'x and y': changed('boxes', lambda x: x[..., [1, 0, 3, 2]]),
    'a pixel': changed('boxes', lambda x: x + 1),
    'scores': changed('scores', lambda x: x * 0.99),
    'labels from 1': changed('labels', lambda x: torch.where(x < 0, x, x + 1)),
    'NaN': changed('boxes', lambda x: x * torch.nan),
    'nothing': changed('labels', lambda x: torch.full_like(x, -1)),
    'one image': lambda run, *x, **more: {k: v[:1] for k, v in run(*x, **more).items()},
    'twice': changed('labels', lambda x: x[:, [0, *range(x.shape[1] - 1)]]),
}


@pytest.mark.parametrize('name', BREAKS)
def test_a_broken_detector_is_refused(name, proven):
    graph, images = proven
    run = run_of(graph)
    comparisons = compare(graph, lambda *x, **more: BREAKS[name](run, *x, **more), images)
    assert max(one.excess for one in comparisons) > 1


def test_a_detector_without_a_detection_is_compared_at_a_lower_threshold():
    model, graph = make('mask_rcnn')
    graph.thresholds['score_threshold'] = 0.9999
    comparisons = compare(graph, run_of(graph), read_images(read_config(NANO), None))
    assert sum(len(x['boxes']) for one in comparisons for x in one.expected) > 20
    assert model.roi_head.test_cfg.score_thr == 0.05


def test_heads_that_the_graph_does_not_compute_are_refused():
    model, _ = make('mask_rcnn')
    model.roi_head.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(UserError, match='soft_nms'):
        build_graph(model, 'detection', features=False, argmax=False, size=None)
    model, _ = make('mask_rcnn')

    class Head(type(model.roi_head.bbox_head)):
        def predict_by_feat(self, *arguments):
            return None

    model.roi_head.bbox_head.__class__ = Head
    with pytest.raises(UserError, match='with Head cannot be exported'):
        build_graph(model, 'detection', features=False, argmax=False, size=None)


# A process that has neither PyTorch nor this package.
ALONE = """
import json, runpy, sys
program = runpy.run_path(sys.argv[1])
session, about = program['load'](sys.argv[1].replace('_onnx.py', '.onnx'))
image = program['np'].asarray(program['Image'].open(sys.argv[2]).convert('RGB'))
objects = program['predict'](session, about, image, 0.06)
for one in objects:
    one['mask'] = one['mask'].tolist()
assert not {'torch', 'mmdet', 'gcvit_mm', 'cv2'} & set(sys.modules)
print(json.dumps(objects))
"""


@pytest.mark.slow
def test_the_program_beside_a_file_predicts_what_the_model_does(trained, tmp_path):
    import onnx

    file = tmp_path / 'model.onnx'
    path = min((trained.data / 'images/validation').iterdir())
    images = ('--images', path.parent)
    succeed('export.py', trained.work_dir, '--static', '64x64', *images, '--out', file)
    assert {x.name for x in tmp_path.iterdir()} == {
        'model.onnx', 'model.json', 'model.worst.png', 'model_onnx.py',
    }  # fmt: skip
    command = [sys.executable, '-I', '-c', ALONE, tmp_path / 'model_onnx.py', path]
    ran = subprocess.run(command, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    objects = json.loads(ran.stdout)
    (sample,) = Predictor(trained.work_dir, device='cpu')(path)
    own = sample.pred_instances[sample.pred_instances.scores >= 0.06]
    assert len(objects) == len(own) > 3
    for i, one in enumerate(objects):
        assert one['label'] == own.labels[i]
        assert np.abs(np.array(one['box']) - own.bboxes[i].numpy()).max() < 0.01
        assert (np.array(one['mask']) != own.masks[i].numpy()).sum() <= 1

    (shown,) = FilePredictor(str(file))(Image.open(path).convert('RGB'))  # as the page does
    assert len(shown.at_least(0.06)) == len(objects)

    model = onnx.load(file)
    (default,) = (x for x in model.graph.initializer if x.name == 'iou_threshold')
    default.CopyFrom(onnx.numpy_helper.from_array(np.array([0.1], np.float32), default.name))
    onnx.save(model, tmp_path / 'broken.onnx')
    shutil.copy(tmp_path / 'model.json', tmp_path / 'broken.json')
    error = fail('verify.py', tmp_path / 'broken.onnx', trained.work_dir, *images)
    assert 'boxes are off by' in error
    assert 'computes what' in succeed('verify.py', file, trained.work_dir, *images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'suffix'),
    [
        ('cascade_mask_rcnn', 'onnx'),
        ('faster_rcnn', 'onnx'),
        ('retinanet', 'onnx'),
        ('faster_rcnn', 'xml'),
    ],
)
def test_a_file_of_each_detector_predicts_what_the_model_does(name, suffix, tmp_path):
    if suffix == 'xml':
        pytest.importorskip('openvino')
    config, weights, file = (tmp_path / x for x in ('small.py', 'x.pth', f'x.{suffix}'))
    model, _ = make(name)
    torch.save(dict(meta={}, state_dict=model.state_dict()), weights)
    config_of(name).dump(config)
    succeed('export.py', config, '--checkpoint', weights, '--static', '64x96', '--out', file)
    about = json.loads(file.with_suffix('.json').read_text())
    assert about['comparison'] and file.stat().st_size > 1000
    image = stack(read_images(read_config(NANO), None)[:2], (64, 96), 3)
    outputs = load(file)(image)
    assert (outputs['labels'] >= 0).sum() > 5
    assert ('masks' in outputs) == ('mask' in name)


def test_a_pt2_file_of_a_whole_detector_is_refused(tmp_path):
    error = fail('export.py', NANO, '--random-weights', '--out', tmp_path / 'x.pt2')
    assert '.onnx' in error and '--what features' in error
    assert not list(tmp_path.iterdir())


def test_images_are_read_from_a_folder_or_made(tmp_path):
    cfg = read_config(NANO)
    with pytest.raises(UserError, match='no images'):
        read_images(cfg, str(tmp_path))
    assert np.ptp(np.asarray(read_images(cfg, None)[0])) > 50

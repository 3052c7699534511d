"""Test-time augmentation: each view is undone, and the views are merged as by hand."""

import copy
import json
import runpy

import numpy as np
import pytest
import torch
from command_line import NANO, ROOT, on, succeed
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch.nn import functional as F

import gcvit_mm.datasets  # noqa: F401  (registers)
from gcvit_mm.errors import UserError
from gcvit_mm.evaluation import InstanceTTAModel

TEST = runpy.run_path(str(ROOT / 'tools/test.py'))
SIZE = 64
AXES = {None: (), 'horizontal': (2,), 'vertical': (1,), 'diagonal': (1, 2)}


def load(name: str) -> ConfigDict:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    return cfg


def views_of(root, config, scales, flips, images=(0, 1)):
    """A batch of images in the views of every size with every flip, smaller sizes first."""
    cfg = load(config)
    dataset = cfg.test_dataloader.dataset
    dataset.data_root = str(root)
    pack = 'PackDetInputs' if cfg.default_scope == 'mmdet' else 'PackSegInputs'
    views = [
        [dict(type='Resize', scale_factor=scale, keep_ratio=True) for scale in scales],
        [
            dict(type='RandomFlip', prob=float(flip is not None), direction=flip or 'horizontal')
            for flip in flips
        ],
        [dict(type=pack)],
    ]
    dataset.pipeline = [dict(type='LoadWholeImage'), dict(type='TestTimeAug', transforms=views)]
    built = DATASETS.build(dataset)
    return pseudo_collate([built[i] for i in images])


def view(data, number):
    """One view as a plain batch, whose images are not said to be flipped."""
    part = {key: value[number] for key, value in copy.deepcopy(data).items()}
    for sample in part['data_samples']:
        sample.set_metainfo(dict(flip=False, flip_direction=None))
    return part


# --- Instances --------------------------------------------------------------------------------


def detector_config(kind: str) -> ConfigDict:
    """The nano detector, or the cascade's heads, thinner, in its place."""
    model = load('mask_rcnn_gcvit_nano_shapes.py').model
    if kind == 'cascade':
        cascade = load('cascade_mask_rcnn_gcvit_tiny_coco.py').model
        model.update(type=cascade.type, roi_head=cascade.roi_head)
        heads = model.roi_head
        for part in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
            part.out_channels = 64
        for head in (*heads.bbox_head, heads.mask_head):
            head.update(in_channels=64, conv_out_channels=16, num_classes=3)
        for head in heads.bbox_head:
            head.update(num_shared_convs=1, fc_out_channels=32)
        model.train_cfg, model.test_cfg = cascade.train_cfg, cascade.test_cfg
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=40)
    model.test_cfg.rcnn.max_per_img = 20
    return model


@pytest.fixture(scope='module', params=['mask', 'cascade'])
def detector(request):
    """A random detector whose scores and masks are far from even."""
    torch.manual_seed(0)
    model = MODELS.build(detector_config(request.param))
    model.init_weights()
    for name, module in model.roi_head.named_modules():
        if name.endswith(('fc_cls', 'conv_logits')):
            torch.nn.init.normal_(module.weight, std=0.1 if 'fc_cls' in name else 3.0)
    return model.eval()


@torch.no_grad()
def predict(model, data):
    return [sample.pred_instances for sample in model.test_step(copy.deepcopy(data))]


def mirror(instances, flip):
    """Boxes and masks of an image as of the image that is flipped."""
    x1, y1, x2, y2 = instances.bboxes.T
    if flip in ('horizontal', 'diagonal'):
        x1, x2 = SIZE - x2, SIZE - x1
    if flip in ('vertical', 'diagonal'):
        y1, y2 = SIZE - y2, SIZE - y1
    masks = instances.masks.flip(AXES[flip])
    return InstanceData(
        bboxes=torch.stack([x1, y1, x2, y2], 1),
        scores=instances.scores,
        labels=instances.labels,
        masks=masks,
    )


def assert_same(found, expected, exactly=False):
    assert len(found) == len(expected) > 3
    tolerance = dict(atol=0, rtol=0) if exactly else dict(atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.bboxes, expected.bboxes, **tolerance)
    torch.testing.assert_close(found.scores, expected.scores, **tolerance)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.masks.dtype == expected.masks.dtype == torch.bool
    differ = (found.masks != expected.masks).sum()
    assert differ <= (0 if exactly else 1e-3 * expected.masks.sum())
    assert expected.masks.any()


@pytest.mark.parametrize('scale', [1.0, 1.5])
def test_one_view_without_a_flip_is_the_plain_result(scale, detector, tiny_shapes):
    data = views_of(tiny_shapes, 'mask_rcnn_gcvit_nano_shapes.py', [scale], [None])
    plain = predict(detector, view(data, 0))
    for found, expected in zip(predict(InstanceTTAModel(detector), data), plain, strict=True):
        assert_same(found, expected, exactly=scale == 1)


def test_a_flipped_view_is_flipped_back(detector, tiny_shapes):
    flips = ['horizontal', 'vertical', 'diagonal']
    data = views_of(tiny_shapes, 'mask_rcnn_gcvit_nano_shapes.py', [1.5], flips, images=[0])
    for number, flip in enumerate(flips):
        one = {key: value[number : number + 1] for key, value in data.items()}
        (found,) = predict(InstanceTTAModel(detector), one)
        (mirrored,) = predict(detector, view(data, number))
        assert_same(found, mirror(mirrored, flip))


def test_with_a_flipped_view_a_flipped_image_has_flipped_objects(detector, tiny_shapes):
    data = views_of(
        tiny_shapes, 'mask_rcnn_gcvit_nano_shapes.py', [1.0], [None, 'horizontal'], images=[2]
    )
    mirrored = dict(inputs=data['inputs'][::-1], data_samples=data['data_samples'])
    model = InstanceTTAModel(detector)
    (found,), (expected,) = predict(model, mirrored), predict(model, data)
    assert_same(found, mirror(expected, 'horizontal'))


def test_boxes_are_merged_by_nms_and_masks_averaged(detector, tiny_shapes, monkeypatch):
    monkeypatch.setitem(detector.roi_head.test_cfg, 'mask_thr_binary', -1)  # probabilities x 255
    scales, flips = [1.0, 1.5], [None, 'horizontal']
    data = views_of(tiny_shapes, 'mask_rcnn_gcvit_nano_shapes.py', scales, flips)
    found = predict(InstanceTTAModel(detector), data)
    plain = [predict(detector, view(data, number)) for number in range(4)]
    for image, instances in enumerate(found):
        candidates = InstanceData.cat([mirror(plain[n][image], flips[n % 2]) for n in range(4)])
        kept = nms(candidates)[:20]
        assert len(kept) == len(instances)
        torch.testing.assert_close(instances.bboxes, candidates.bboxes[kept], atol=1e-3, rtol=0)
        torch.testing.assert_close(instances.scores, candidates.scores[kept], atol=1e-5, rtol=0)
        assert instances.labels.tolist() == candidates.labels[kept].tolist()
        masks = [
            masks_in_view(detector, view(data, n), image, instances, scales[n // 2], flips[n % 2])
            for n in range(4)
        ]
        mean = np.mean(masks, axis=0)
        assert np.abs(mean - instances.masks.numpy()).max() < 3
        assert np.abs(masks[0].astype(float) - mean).max() > 30  # the views do differ


def nms(instances):
    """Indices of the boxes that no better one of their class overlaps by more than half."""
    boxes, kept = instances.bboxes.double().numpy(), []
    for i in instances.scores.argsort(descending=True).tolist():
        rivals = [j for j in kept if instances.labels[j] == instances.labels[i]]
        if all(iou(boxes[i], boxes[j]) <= 0.5 for j in rivals):
            kept.append(i)
    return kept


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@torch.no_grad()
def masks_in_view(detector, data, image, instances, scale, flip):
    """The detector's own masks of some boxes in one view, brought back to the image."""
    data = detector.data_preprocessor(data, False)
    maps = [level[image : image + 1] for level in detector.extract_feat(data['inputs'])]
    there = mirror(instances, flip)
    there = InstanceData(bboxes=there.bboxes * scale, labels=there.labels)
    metas = [data['data_samples'][image].metainfo]
    (there,) = detector.roi_head.predict_mask(maps, metas, [there], rescale=True)
    return there.masks.flip(AXES[flip]).numpy()


def test_images_without_objects_have_no_masks(detector, tiny_shapes, monkeypatch):
    monkeypatch.setitem(detector.roi_head.test_cfg, 'score_thr', 1.0)
    data = views_of(tiny_shapes, 'mask_rcnn_gcvit_nano_shapes.py', [1.0], [None, 'horizontal'])
    for instances in predict(InstanceTTAModel(detector), data):
        assert instances.bboxes.shape == (0, 4)
        assert instances.masks.shape == (0, SIZE, SIZE)


def test_a_detector_without_masks_is_refused():
    with torch.device('meta'):
        cfg = load('retinanet_gcvit_tiny_coco.py').model
        cfg.backbone.init_cfg = None
        with pytest.raises(UserError, match=r'RetinaNet: .*DetTTAModel'):
            InstanceTTAModel(cfg)


@pytest.mark.parametrize(
    ('config', 'sizes', 'flips'),
    [
        ('mask_rcnn_gcvit_tiny_coco.py', [640, 800, 960], [None, 'horizontal']),
        ('cascade_mask_rcnn_gcvit_tiny_coco.py', [640, 800, 960], [None, 'horizontal']),
        ('mask_rcnn_gcvit_nano_shapes.py', [SIZE], list(AXES)),
    ],
)
def test_configs_ask_for_views(config, sizes, flips, tiny_shapes):
    cfg = load(config)
    assert cfg.tta_model.type == 'InstanceTTAModel'
    dataset = load('mask_rcnn_gcvit_nano_shapes.py').test_dataloader.dataset
    dataset.update(data_root=str(tiny_shapes), pipeline=cfg.tta_pipeline)
    samples = DATASETS.build(dataset)[0]['data_samples']
    views = [(sample.img_shape, sample.flip_direction) for sample in samples]
    assert views == [((size, size), flip) for size in sizes for flip in flips]


def test_the_command_line_evaluates_with_augmentation(trained, tmp_path):
    arguments = NANO, trained.checkpoint, '--work-dir', tmp_path / 'work', '--tta'
    out = '--out', tmp_path / 'result', '--show-dir', tmp_path / 'pictures'
    output = succeed('test.py', *arguments, *out, *on(trained.data), 'test_dataloader.batch_size=2')
    assert 'Checkpoint' in output
    assert 'coco/segm_mAP' in json.loads((tmp_path / 'result.metrics.json').read_text())
    assert json.loads((tmp_path / 'result.segm.json').read_text())
    assert len(list((tmp_path / 'pictures').iterdir())) == 5


def test_a_config_without_augmentation_is_named():
    use_tta_pipeline = TEST['use_tta_pipeline']
    with pytest.raises(UserError, match='--tta: set tta_model and tta_pipeline'):
        use_tta_pipeline(load('gcvit_xxtiny_imagenet.py'))


# --- Label maps -------------------------------------------------------------------------------


@pytest.mark.parametrize('channels', [4, 1])
def test_label_maps_are_of_the_mean_of_the_views_probabilities(channels, tiny_shapes):
    scales, flips = [1.0, 1.5], [None, 'horizontal', 'vertical']
    config = 'upernet_gcvit_nano_shapes.py'
    data = views_of(tiny_shapes, config, scales, flips, images=[0])
    cfg = load(config)
    torch.manual_seed(0)
    if channels == 1:
        cfg.model.decode_head.update(num_classes=2, out_channels=1, threshold=0.4)
        cfg.model.decode_head.loss_decode = dict(type='CrossEntropyLoss', use_sigmoid=True)
    model = MODELS.build(cfg.model).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    tta = MODELS.build({**TEST['tta_model_of'](cfg, model), 'module': model})
    with torch.no_grad():
        found = tta.test_step(copy.deepcopy(data))
        probabilities = 0
        for number in range(6):
            part = model.data_preprocessor(view(data, number), False)
            logits = model.encode_decode(
                part['inputs'], [sample.metainfo for sample in part['data_samples']]
            ).flip([axis + 1 for axis in AXES[flips[number % 3]]])
            logits = F.interpolate(logits, (SIZE, SIZE), mode='bilinear', align_corners=False)
            views = logits.softmax(1) if channels > 1 else logits.sigmoid()
            probabilities = probabilities + views / 6
    for sample, expected in zip(found, probabilities, strict=True):
        if channels == 1:
            expected = torch.cat([torch.full_like(expected, 0.4), expected])
        best, second = expected.topk(2, dim=0).values
        clear = best - second > 1e-4
        assert clear.float().mean() > 0.95
        labels = sample.pred_sem_seg.data.squeeze()
        assert (labels == expected.argmax(0))[clear].all()
        assert len(labels.unique()) > 1

"""The evaluators that the configs name give published and independently computed figures."""

import csv
import json
import os
import runpy
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import ROOT, succeed
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import gcvit_mm.datasets
import gcvit_mm.evaluation  # noqa: F401  (registers)
from gcvit_mm.config import default_scope
from gcvit_mm.datasets.shapes import make_shapes
from gcvit_mm.engine import EvaluatorHook, SafeCheckpointHook
from gcvit_mm.engine.hooks.safe_checkpoint_hook import WholeFileBackend
from gcvit_mm.errors import UserError
from gcvit_mm.evaluation.faster_coco_metric import fastest_evaluation
from gcvit_mm.evaluation.metrics import repair_coco_metric
from gcvit_mm.evaluation.prediction_files import (
    PredictionFilesHook,
    names_of_images,
    values_of_labels,
)

SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
BACKENDS = ['FasterCocoMetric', 'CocoMetric']


def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    return cfg


# --- COCO -------------------------------------------------------------------------------------

# mmdet's names of the COCO API's 12 figures; with limits of 1, 10 and 100 detections, the second
# half are AR1, AR10, AR100, and AR of small, medium and large objects.
ITEMS = [
    'mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l',
    'AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000',
]  # fmt: skip


def coco_metrics(config: str, ann_file: Path, samples: list[dict], **settings) -> dict:
    """What the evaluator of a config says of predictions."""
    cfg = load(config)
    from mmdet.datasets import CocoDataset

    evaluator = Runner.build_evaluator(
        None, {**cfg.val_evaluator, 'ann_file': str(ann_file), 'metric_items': ITEMS, **settings}
    )
    names = tuple(category['name'] for category in json.loads(ann_file.read_text())['categories'])
    assert len(names) < 80 or names == CocoDataset.METAINFO['classes']
    evaluator.dataset_meta = dict(classes=names)
    for metric in evaluator.metrics:
        repair_coco_metric(metric)
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


def coco_samples(truth: dict, results: list[dict]):
    """COCO's results as what a detector hands to its evaluator, image by image."""
    labels = {category['id']: i for i, category in enumerate(truth['categories'])}
    by_image = defaultdict(list)
    for result in results:
        by_image[result['image_id']].append(result)
    for image in truth['images']:
        found = by_image[image['id']]
        boxes = np.array([r.get('bbox', [0, 0, 1, 1]) for r in found], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = dict(
            bboxes=torch.from_numpy(boxes),
            scores=torch.tensor([r['score'] for r in found], dtype=torch.float64),
            labels=torch.tensor([labels[r['category_id']] for r in found], dtype=torch.int64),
        )
        if found and 'segmentation' in found[0]:
            instances['masks'] = [r['segmentation'] for r in found]
        elif results and 'segmentation' in results[0]:
            instances['masks'] = []
        yield dict(
            img_id=image['id'],
            ori_shape=(image['height'], image['width']),
            pred_instances=instances,
        )


@pytest.mark.parametrize(
    'config',
    [
        'mask_rcnn_gcvit_xxtiny_coco.py',
        'cascade_mask_rcnn_gcvit_base_coco.py',
        'retinanet_gcvit_tiny_coco.py',
        'mask_rcnn_gcvit_nano_shapes.py',
        'mask_rcnn_gcvit_xxtiny_nuclei.py',
    ],
)
def test_detectors_are_evaluated_by_the_fast_api_within_the_limits_of_coco(config):
    cfg = load(config)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.type == 'FasterCocoMetric'
        assert tuple(evaluator.proposal_nums) == (1, 10, 100)


@pytest.mark.skipif(not SAMPLES, reason='GCVIT_MM_SAMPLES is unset: no published results here')
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('backend', BACKENDS)
def test_coco_evaluators_give_the_published_figures(backend, kind):
    folder = Path(SAMPLES) / 'eval_check'
    ann_file = folder / 'instances_val2014_100.json'
    results = json.loads((folder / f'instances_val2014_fake{kind}100_results.json').read_text())
    expected = json.loads((folder / 'expected_full_precision.json').read_text())[kind]['stats']
    samples = list(coco_samples(json.loads(ann_file.read_text()), results))
    metrics = coco_metrics(
        'mask_rcnn_gcvit_tiny_coco.py', ann_file, samples, type=backend, metric=kind
    )
    measured = [metrics[f'coco/{kind}_{item}'] for item in ITEMS]
    assert measured == [pytest.approx(round(value, 3), abs=1e-9) for value in expected]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    """Shapes with crowds among them."""
    return make_shapes(tmp_path_factory.mktemp('shapes'), train=1, val=40, size=96)


def detections(truth: COCO) -> list[dict]:
    """Three tries at each object, crowds too: somewhat shifted, of uneven score, some mislabelled.

    Scores have few values, so that many are equal.
    """
    rng, found = np.random.default_rng(0), []
    for annotation in truth.dataset['annotations']:
        for _ in range(3):
            mask = np.roll(truth.annToMask(annotation), rng.integers(-4, 5, size=2), (0, 1))
            found.append(
                dict(
                    image_id=annotation['image_id'],
                    category_id=int(rng.integers(1, 4))
                    if rng.random() < 0.2
                    else annotation['category_id'],
                    score=round(float(rng.random()), 1),
                    segmentation=rle.encode(np.asfortranarray(mask)),
                    bbox=(np.array(annotation['bbox']) + rng.normal(0, 2, 4)).clip(1).tolist(),
                )
            )
    return found


def test_both_coco_evaluators_agree_on_crowds_classes_and_proposals(shapes):
    ann_file = shapes / 'annotations/instances_validation.json'
    truth = COCO(str(ann_file))
    assert any(annotation['iscrowd'] for annotation in truth.dataset['annotations'])
    samples = list(coco_samples(truth.dataset, detections(truth)))
    fast, slow = (
        {
            kind: coco_metrics(
                'mask_rcnn_gcvit_nano_shapes.py',
                ann_file,
                samples,
                type=backend,
                metric=kind,
                classwise=True,
                metric_items=ITEMS[6:] if kind == 'proposal' else ITEMS,
            )
            for kind in ('bbox', 'segm', 'proposal')
        }
        for backend in BACKENDS
    )
    for kind, figures in slow.items():
        assert fast[kind] == pytest.approx(figures, nan_ok=True), kind
    for kind in ('bbox', 'segm'):
        assert 0.1 < slow[kind][f'coco/{kind}_mAP'] < 0.9
        assert len({slow[kind][f'coco/{name}_precision'] for name in ('disk', 'box', 'star')}) == 3
    assert 0.1 < slow['proposal']['coco/AR@1000'] < 0.9


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('hidden', [[], ['hotcoco'], ['hotcoco', 'faster_coco_eval']])
def test_the_evaluation_agrees_in_all_digits_whatever_is_installed(
    hidden, kind, shapes, monkeypatch
):
    names = ['hotcoco', 'faster_coco_eval', 'pycocotools']
    present = [name for name in names if name not in hidden and find_spec(name)]
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    truth = COCO(str(shapes / 'annotations/instances_validation.json'))
    results = truth.loadRes(detections(truth))
    figures = []
    for create in (fastest_evaluation(), COCOeval):
        evaluation = create(truth, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures.append(list(evaluation.stats[:12]))
        used = type(evaluation).__module__.split('.')[0].replace('builtins', 'hotcoco')
        assert used == (present[0] if create is not COCOeval else 'pycocotools')
    assert figures[0] == pytest.approx(figures[1], abs=1e-12)
    assert 0.1 < figures[0][0] < 0.9


@pytest.mark.parametrize('backend', BACKENDS)
def test_nothing_found_is_no_error(backend, shapes):
    ann_file = shapes / 'annotations/instances_validation.json'
    samples = list(coco_samples(json.loads(ann_file.read_text()), []))
    config = 'mask_rcnn_gcvit_nano_shapes.py'
    assert coco_metrics(config, ann_file, samples, type=backend, metric='bbox') == {}


@pytest.mark.parametrize('backend', BACKENDS)
def test_classes_have_an_ap_for_boxes_and_one_for_masks(backend, shapes):
    ann_file = shapes / 'annotations/instances_validation.json'
    truth = COCO(ann_file)
    samples = list(coco_samples(truth.dataset, detections(truth)))

    def evaluate(**settings):
        return coco_metrics('mask_rcnn_gcvit_nano_shapes.py', ann_file, samples, **settings)

    both = evaluate(type=backend, classwise=True)
    for kind in ('bbox', 'segm'):
        alone = evaluate(type=backend, classwise=True, metric=[kind])
        for name in ('disk', 'box', 'star'):
            assert both[f'coco/{kind}_{name}_precision'] == alone[f'coco/{name}_precision']
    whole = evaluate(type=backend)
    assert all(both[name] == value for name, value in whole.items())


@pytest.mark.parametrize('backend', BACKENDS)
def test_one_iou_threshold_is_enough(backend, shapes):
    ann_file = shapes / 'annotations/instances_validation.json'
    truth = COCO(ann_file)
    samples = list(coco_samples(truth.dataset, detections(truth)))
    config = 'mask_rcnn_gcvit_nano_shapes.py'
    whole = coco_metrics(config, ann_file, samples, type=backend)
    one = coco_metrics(config, ann_file, samples, type=backend, iou_thrs=0.5)
    for kind in ('bbox', 'segm'):
        assert one[f'coco/{kind}_mAP'] == one[f'coco/{kind}_mAP_50'] == whole[f'coco/{kind}_mAP_50']
        assert one[f'coco/{kind}_mAP_75'] == -1
    with pytest.raises(UserError, match='classwise=True needs the IoU thresholds'):
        coco_metrics(config, ann_file, samples, type=backend, iou_thrs=0.5, classwise=True)


@pytest.mark.parametrize('backend', BACKENDS)
def test_clicks_before_a_polygon_change_no_figure(backend, shapes, tmp_path):
    ann_file = shapes / 'annotations/instances_validation.json'
    truth = COCO(ann_file)
    samples = list(coco_samples(truth.dataset, detections(truth)))
    content = json.loads(ann_file.read_text())
    for annotation in content['annotations']:
        if isinstance(annotation['segmentation'], list):
            annotation['segmentation'].insert(0, [6, 8])
            annotation['segmentation'].append([6, 8, 20, 20])
    clicked = tmp_path / 'clicked.json'
    clicked.write_text(json.dumps(content))
    figures = [
        coco_metrics('mask_rcnn_gcvit_nano_shapes.py', file, samples, type=backend)
        for file in (ann_file, clicked)
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ('config', 'given', 'taken'),
    [
        ('mask_rcnn_gcvit_nano_shapes.py', 'bbox_mAP', 'coco/bbox_mAP'),
        ('mask_rcnn_gcvit_nano_shapes.py', 'coco/segm_mAP_50', 'coco/segm_mAP_50'),
        ('upernet_gcvit_nano_shapes.py', 'mIoU', 'mIoU'),
        ('gcvit_tiny_imagenet.py', 'top5', 'accuracy/top5'),
        ('mask_rcnn_gcvit_nano_shapes.py', 'mAP', ['coco/bbox_mAP, ', 'coco/segm_mAP_l']),
        ('mask_rcnn_gcvit_nano_shapes.py', 'bbox_mAP_90', ['coco/bbox_mAP_75']),
        ('retinanet_gcvit_tiny_coco.py', 'coco/segm_mAP', ['coco/bbox_mAP']),
        ('upernet_gcvit_nano_shapes.py', 'mDice', ['aAcc, mIoU, mAcc']),
        ('gcvit_tiny_imagenet.py', 'accuracy/top3', ['accuracy/top1, accuracy/top5']),
    ],
)
def test_names_of_the_best_checkpoint_are_those_of_the_evaluator(config, given, taken, shapes):
    settings = load(config).val_evaluator
    if 'ann_file' in settings:
        settings.ann_file = str(shapes / 'annotations/instances_validation.json')
    evaluator = Runner.build_evaluator(None, settings)
    saver = SafeCheckpointHook(save_best=given, rule='greater')
    monitor = SimpleNamespace(monitor=given)
    loop = SimpleNamespace(evaluator=evaluator)
    runner = SimpleNamespace(_val_loop=loop, _test_loop={}, hooks=[saver], param_schedulers=None)
    if isinstance(taken, str):
        runner.hooks.append(monitor)
        EvaluatorHook().before_run(runner)
        assert saver.key_indicators == [taken] and taken in saver.is_better_than
        assert monitor.monitor == taken
        return
    with pytest.raises(UserError) as error:
        EvaluatorHook().before_run(runner)
    assert f'default_hooks.checkpoint.save_best={given} ' in str(error.value)
    assert all(name in str(error.value) for name in taken)


def test_an_evaluation_without_predictions_saves_no_best_checkpoint():
    """A ``CocoMetric`` gives no figure if nothing is predicted."""
    saver = SafeCheckpointHook(save_best='coco/bbox_mAP')
    said: list[str] = []
    runner = SimpleNamespace(logger=SimpleNamespace(error=said.append))
    saver._save_best_checkpoint(runner, {})
    assert 'the evaluation gave no coco/bbox_mAP, only nothing' in said[0]


def test_the_best_score_of_another_metric_and_nan_do_not_count(tmp_path):
    """A training was resumed with another ``save_best``."""
    saver = SafeCheckpointHook(save_best='coco/segm_mAP', filename_tmpl='epoch_{}.pth')
    saver.out_dir, saver.file_backend, saver.last_ckpt = str(tmp_path), WholeFileBackend(), None
    saver._write = lambda *_, **__: True
    info = {'best_score': 0.9, 'best_ckpt': 'work/best_coco_bbox_mAP_epoch_3.pth'}
    hub = SimpleNamespace(runtime_info=info, update_info=info.__setitem__)
    runner = SimpleNamespace(
        message_hub=hub, epoch=4, iter=8, logger=SimpleNamespace(info=lambda _: None)
    )
    for score, best in (
        (float('nan'), 0.9),
        (0.5, 0.5),
        (float('nan'), 0.5),
        (0.4, 0.5),
        (0.6, 0.6),
    ):
        saver._save_best_checkpoint(runner, {'coco/segm_mAP': score})
        assert info['best_score'] == best


def test_metrics_are_json_without_nan():
    as_json = runpy.run_path(str(ROOT / 'tools/test.py'))['as_json']

    figures = {'a': float('nan'), 'b': np.float64(0.123456), 'c': np.float32('inf'), 'd': 3}
    assert json.loads(as_json(figures)) == {'a': None, 'b': 0.1235, 'c': None, 'd': 3}


def test_an_mmdet_without_the_fast_evaluator_evaluates_by_the_other(shapes, monkeypatch):
    from mmdet.registry import METRICS as OF_MMDET

    init_default_scope('mmdet')
    assert type(METRICS.build(dict(type='FasterCocoMetric'))).__name__ == 'FasterCocoMetric'
    monkeypatch.delitem(OF_MMDET.module_dict, 'FasterCocoMetric')
    evaluator = load('mask_rcnn_gcvit_nano_shapes.py').val_evaluator
    evaluator.ann_file = str(shapes / 'annotations/instances_validation.json')
    metric = METRICS.build(evaluator)
    assert type(metric).__name__ == 'CocoMetric'
    assert metric.metrics == ['bbox', 'segm']
    assert metric.proposal_nums == [1, 10, 100]


# --- Label maps -------------------------------------------------------------------------------


def generated_ade20k(root: Path) -> Path:
    """Images and label maps like ADE20K's: 0 is nothing, classes count from 1 to 150."""
    rng = np.random.default_rng(0)
    for folder in ('images', 'annotations'):
        (root / folder).mkdir()
    for i in range(6):
        labels = rng.choice([0, 1, 2, 77, 149, 150], size=(6, 8)).astype(np.uint8)
        labels = labels.repeat(10, 0).repeat(10, 1)
        Image.fromarray(labels).save(root / f'annotations/{i}.png')
        Image.fromarray(np.stack([labels] * 3, -1)).save(root / f'images/{i}.jpg')
    return root


@pytest.fixture(scope='module', params=['generated', 'real'])
def ade20k(request, tmp_path_factory) -> Path:
    if request.param == 'generated':
        return generated_ade20k(tmp_path_factory.mktemp('ade'))
    if not SAMPLES:
        pytest.skip('GCVIT_MM_SAMPLES is unset: no photos of ADE20K here')
    return Path(SAMPLES) / 'ade_real'


def test_miou_on_ade20k_is_that_of_a_confusion_matrix_of_the_raw_files(ade20k):
    cfg = load('upernet_gcvit_tiny_ade20k.py')
    settings = cfg.val_dataloader.dataset
    settings.update(
        data_root=str(ade20k), data_prefix=dict(img_path='images', seg_map_path='annotations')
    )
    dataset = DATASETS.build(settings)
    evaluator = Runner.build_evaluator(None, cfg.val_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    indices = range(0, len(dataset), 1 + len(dataset) // 12)
    matrix = np.zeros((150, 150), np.int64)
    rng = np.random.default_rng(0)
    for i in indices:
        sample = dataset[i]['data_samples']
        raw = np.asarray(Image.open(ade20k / f'annotations/{Path(sample.img_path).stem}.png'))
        # A wrong class in a third of the pixels, and any where the truth does not count.
        wrong = (rng.random(raw.shape) < 0.3) | (raw == 0)
        predicted = np.where(wrong, rng.integers(0, 150, raw.shape), raw.astype(int) - 1)
        counted = raw > 0
        pairs = 150 * (raw[counted].astype(int) - 1) + predicted[counted]
        matrix += np.bincount(pairs, minlength=150**2).reshape(150, 150)
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(predicted)[None])
        evaluator.process([sample.to_dict()])

    right, true, found = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    parts = [sum(part) for part in zip(*evaluator.metrics[0].results, strict=True)]
    for part, expected in zip(parts, (right, true + found - right, found, true), strict=True):
        assert part.tolist() == expected.tolist()  # class by class
    with np.errstate(invalid='ignore'):
        iou, accuracy = right / (true + found - right), right / true
    expected = {
        'aAcc': 100 * right.sum() / matrix.sum(),
        'mIoU': 100 * np.nanmean(iou),
        'mAcc': 100 * np.nanmean(accuracy),
    }
    assert evaluator.evaluate(len(indices)) == pytest.approx(expected, abs=0.0051)
    assert 60 < expected['aAcc'] < 80


# --- Classes ----------------------------------------------------------------------------------


def test_top1_and_top5_are_those_of_sorted_scores():
    cfg = load('gcvit_xxtiny_imagenet.py')
    from mmpretrain.structures import DataSample

    rng = np.random.default_rng(0)
    scores, truth = rng.random((500, 1000)), rng.integers(0, 1000, 500)
    scores[np.arange(500), truth] = 1 - 0.01 * rng.random(500)  # among the best ten or so
    evaluator = Runner.build_evaluator(None, cfg.val_evaluator)
    for values, label in zip(scores, truth, strict=True):
        sample = DataSample().set_pred_score(torch.from_numpy(values)).set_gt_label(int(label))
        evaluator.process([sample.to_dict()])
    better = (scores > scores[np.arange(500), truth][:, None]).sum(1)
    expected = {f'accuracy/top{k}': 100 * (better < k).mean() for k in (1, 5)}
    assert evaluator.evaluate(500) == pytest.approx(expected, abs=1e-4)
    assert 5 < expected['accuracy/top1'] < expected['accuracy/top5'] < 95


# --- What tools/test.py writes ----------------------------------------------------------------


def write_random_model(config: Path, file: Path) -> Path:
    cfg = load(config)
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, file)
    return file


@pytest.mark.parametrize('reduce_zero_label', [pytest.param(False, marks=pytest.mark.slow), True])
def test_label_maps_are_written_with_the_values_of_the_data(
    reduce_zero_label, tiny_shapes, tmp_path
):
    config = 'upernet_gcvit_nano_shapes.py'
    checkpoint = write_random_model(config, tmp_path / 'model.pth')
    succeed(
        'test.py', f'configs/{config}', checkpoint, '--work-dir', tmp_path / 'work',
        '--out', tmp_path / 'out/val', '--show-dir', tmp_path / 'pictures', '--cfg-options',
        f'test_dataloader.dataset.data_root={tiny_shapes}', 'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        f'test_dataloader.dataset.reduce_zero_label={reduce_zero_label}',
    )  # fmt: skip
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'val.maps', 'val.metrics.json'}
    files = sorted((tiny_shapes / 'annotations/validation').iterdir())
    assert [path.name for path in sorted((tmp_path / 'out/val.maps').iterdir())] == [
        path.name for path in files
    ]
    truth = np.array([np.asarray(Image.open(path)) for path in files])
    found = np.array([np.asarray(Image.open(tmp_path / 'out/val.maps' / p.name)) for p in files])
    assert found.dtype == np.uint8
    assert found.shape == truth.shape
    assert found.min() >= reduce_zero_label
    assert len(np.unique(found)) > 1
    counted = truth > 0 if reduce_zero_label else truth >= 0
    accuracy = 100 * (found == truth)[counted].mean()
    metrics = json.loads((tmp_path / 'out/val.metrics.json').read_text())
    assert metrics['aAcc'] == pytest.approx(accuracy, abs=0.0051)
    assert len(list((tmp_path / 'pictures').iterdir())) == len(files)


def test_files_of_images_in_several_folders_are_kept_apart():
    paths = [f'data/{name}' for name in ('cam0/a.png', 'cam1/a.png', 'cam1/a.jpg')]
    assert names_of_images(paths) == dict(
        zip(paths, ['cam0/a', 'cam1/a.png', 'cam1/a.jpg'], strict=True)
    )
    assert names_of_images(paths[:1]) == {paths[0]: 'a'}


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_labels_of_a_selection_of_classes_have_the_values_of_all(reduce_zero_label):
    with default_scope(Config(dict(default_scope='mmseg'))):
        dataset = DATASETS.build(
            dict(
                type='ADE20KDataset',
                metainfo=dict(classes=('sky', 'wall')),  # 2 and 0 of all
                reduce_zero_label=reduce_zero_label,
                lazy_init=True,
            )
        )
    labels = values_of_labels(dataset.metainfo)[np.array([[0, 1]], np.uint16)]
    assert labels.tolist() == [[3, 1]] if reduce_zero_label else [[2, 0]]


def files_of(cfg, outputs, paths, metainfo, **folders):
    """Run the hook on outputs."""

    class Data(list):
        def get_data_info(self, i):
            return self[i]

    dataset = Data(dict(img_path=str(path)) for path in paths)
    dataset.metainfo = metainfo
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset), cfg=cfg)
    hook = PredictionFilesHook(**{name: str(folder) for name, folder in folders.items()})
    with default_scope(cfg):
        hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, None, outputs)
    hook.after_test(runner)


def test_objects_of_more_classes_than_colors_are_drawn_in_all_folders(tmp_path):
    paths = [tmp_path / f'cam{i}/frame.png' for i in range(2)]
    outputs = []
    for path in paths:
        path.parent.mkdir()
        Image.new('RGB', (60, 40)).save(path)
        sample = DetDataSample(
            metainfo=dict(img_path=str(path), ori_shape=(40, 60), img_shape=(80, 120))
        )
        box, label = torch.tensor([[5.0, 5, 30, 30]]), torch.tensor([84])
        sample.gt_instances = InstanceData(bboxes=box, labels=label)
        sample.pred_instances = InstanceData(bboxes=box, labels=label, scores=torch.tensor([0.9]))
        outputs.append(sample)
    classes = tuple(f'part {i}' for i in range(85))
    for palette in (None, [[0, 0, 255]] * 80, [[9, 200, 9]] * 85):
        metainfo = dict(classes=classes, **({'palette': palette} if palette else {}))
        dataset = dict(
            type='CocoDataset', metainfo=metainfo, pipeline=[dict(type='LoadWholeImage')]
        )
        cfg = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=dataset)))
        pictures = tmp_path / f'pictures {bool(palette)} {len(palette or ())}'
        files_of(cfg, outputs, paths, metainfo, pictures=pictures)
        for path in paths:
            picture = np.asarray(Image.open(pictures / path.parent.name / 'frame.png'))
            assert picture.shape == (480, 2 * 720, 3)
            truth, prediction = np.split(picture, 2, axis=1)
            assert truth.any() and prediction.any()
            assert (truth == prediction).mean() > 0.98  # but for the score in the caption
    outputs[0].gt_instances = InstanceData()  # as mmdet gives it without annotations
    files_of(cfg, outputs[:1], paths, metainfo, pictures=tmp_path / 'alone')
    assert Image.open(tmp_path / 'alone/cam0/frame.png').size == (720, 480)


def test_label_maps_of_all_folders_have_the_values_of_the_data(tmp_path):
    paths = [tmp_path / f'cam{i}/frame.png' for i in range(2)]
    outputs = []
    for label, path in enumerate(paths):
        sample = SegDataSample(metainfo=dict(img_path=str(path)))
        sample.pred_sem_seg = PixelData(data=torch.full((1, 4, 5), label))
        outputs.append(sample)
    metainfo = dict(classes=('road', 'car'), label_map={0: 0, 1: 255, 2: 255, 3: 1})
    dataset = dict(type='BaseSegDataset', pipeline=[dict(type='LoadWholeImage')])
    cfg = Config(dict(default_scope='mmseg', test_dataloader=dict(dataset=dataset)))
    files_of(cfg, outputs, paths, metainfo, maps=tmp_path / 'maps')
    for i, value in enumerate((0, 3)):
        written = np.asarray(Image.open(tmp_path / f'maps/cam{i}/frame.png'))
        assert written.dtype == np.uint8
        assert written.tolist() == [[value] * 5] * 4


CLASSIFIER = """
_base_ = ['{configs}/gcvit_xxtiny_imagenet.py', '{configs}/_base_/nano_arch.py']
data_preprocessor = dict(num_classes=7)
model = dict(
    backbone=dict(
        _delete_=True,
        type='GCViT',
        arch=_base_.nano_arch,
        window_size=4,
        out_indices=(3,),
    ),
    head=dict(num_classes=7, in_channels=256),
)
test_pipeline = [
    dict(type='LoadWholeImage'),
    dict(type='ResizeEdge', scale=64, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs'),
]
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root='{data}', pipeline=test_pipeline
    ),
)
"""


def test_classes_are_written_as_a_table(tmp_path):
    rng = np.random.default_rng(0)
    for name in 'abcdefg':
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (80, 70, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f'data/{name}/{i}.png')
    config = tmp_path / 'config.py'
    config.write_text(CLASSIFIER.format(configs=ROOT / 'configs', data=tmp_path / 'data'))
    checkpoint = write_random_model(config, tmp_path / 'model.pth')
    succeed(
        'test.py', config, checkpoint, '--work-dir', tmp_path / 'work',
        '--out', tmp_path / 'val', '--show-dir', tmp_path / 'pictures',
    )  # fmt: skip
    with open(tmp_path / 'val.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [Path(row['image']).relative_to(tmp_path / 'data').parts for row in rows] == [
        (name, f'{i}.png') for name in 'abcdefg' for i in range(2)
    ]
    for row in rows:
        assert row['true_class'] == Path(row['image']).parent.name
        assert 'abcdefg'[int(row['true_label'])] == row['true_class']
        assert 'abcdefg'[int(row['label'])] == row['class']
        best, scores = row['top5'].split(), list(map(float, row['top5_scores'].split()))
        assert len(set(best)) == len(scores) == 5
        assert (best[0], scores[0]) == (row['label'], float(row['score']))
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) <= 1
    metrics = json.loads((tmp_path / 'val.metrics.json').read_text())
    for k in (1, 5):
        hits = [row['true_label'] in row['top5'].split()[:k] for row in rows]
        assert metrics[f'accuracy/top{k}'] == pytest.approx(100 * np.mean(hits), abs=1e-3)
    assert len(list((tmp_path / 'pictures').glob('?/*.png'))) == len(rows)
    # The config in the work directory is one to evaluate with again.
    output = succeed(
        'test.py', tmp_path / 'work/config.py', checkpoint, '--work-dir', tmp_path / 'work',
        '--out', tmp_path / 'again',
    )  # fmt: skip
    assert (tmp_path / 'again.csv').read_text() == (tmp_path / 'val.csv').read_text()
    assert output.count('This run:') == 1

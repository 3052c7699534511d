"""The metrics of a file and of its model, on data whose truth is what the model predicts."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from command_line import fail, succeed
from PIL import Image
from pycocotools.mask import encode
from test_export import CONFIG
from test_export_detectors import config_of, make, run_of

from gcvit_mm.config import build_model, read_config
from gcvit_mm.datasets.shapes import make_shapes
from gcvit_mm.errors import UserError
from gcvit_mm.export.build import build_graph
from gcvit_mm.export.check import read_images
from gcvit_mm.export.evaluation import Evaluation
from gcvit_mm.export.picture import FilePredictor
from gcvit_mm.export.precision import reduce
from gcvit_mm.export.proof import prove_metrics
from gcvit_mm.export.source import Source

WIDER = dict(type='Resize', scale=(96, 72), keep_ratio=False)


def image_of(path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert('RGB')))[None]


def truth_of_objects(graph, root) -> None:
    file = root / 'annotations/instances_validation.json'
    content = json.loads(file.read_text())
    content['annotations'] = []
    for info in content['images']:
        (own,) = graph.expected(image_of(root / 'images/validation' / info['file_name']))
        for box, label, score, mask in zip(
            own['boxes'].tolist(), own['labels'], own['scores'], own['masks'].numpy(), strict=True
        ):
            if score > 0.3:
                code = encode(np.asfortranarray(mask.astype(np.uint8)))
                content['annotations'].append(
                    dict(
                        id=len(content['annotations']) + 1,
                        image_id=info['id'],
                        category_id=content['categories'][int(label)]['id'],
                        bbox=[*box[:2], box[2] - box[0], box[3] - box[1]],
                        area=float(mask.sum()),
                        iscrowd=0,
                        segmentation={**code, 'counts': code['counts'].decode()},
                    )
                )
    assert len(content['annotations']) > 10
    file.write_text(json.dumps(content))


@pytest.fixture(scope='module')
def sources(tmp_path_factory) -> dict[str, tuple]:
    """A model of each task as in a training's work directory, and its graph."""
    root = make_shapes(tmp_path_factory.mktemp('data') / 'shapes', train=1, val=3, size=64)
    found = {}

    model, _ = make('mask_rcnn')
    graph = build_graph(model, 'detection', False, False, None).eval()
    truth_of_objects(graph, root)
    cfg = config_of('mask_rcnn')
    cfg.test_dataloader.dataset.data_root = str(root)
    cfg.test_evaluator.ann_file = str(root / 'annotations/instances_validation.json')
    found['detection'] = Source(model, 'detection', cfg, {}), graph

    cfg = read_config('upernet_gcvit_nano_shapes')
    cfg.test_dataloader.dataset.data_root = str(root)
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    graph = build_graph(model, 'segmentation', False, False, None).eval()
    for path in (root / 'images/validation').iterdir():
        labels = graph.expected(image_of(path))['logits'][0].argmax(0)
        file = root / 'annotations/validation' / f'{path.stem}.png'
        Image.fromarray(labels.numpy().astype(np.uint8)).save(file)
    found['segmentation'] = Source(model, 'segmentation', cfg, {}), graph

    config = root / 'classes.py'
    config.write_text(
        CONFIG + f'test_dataloader.update(batch_size=2, sampler=dict(type="DefaultSampler"))\n'
        f'test_dataloader["dataset"]["data_root"] = "{root}/classes"\n'
        'test_evaluator = dict(type="Accuracy")\n'
    )
    cfg = read_config(config)
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    graph = build_graph(model, 'classification', False, False, None).eval()
    for path in (root / 'images/validation').iterdir():
        label = int(graph.expected(image_of(path))['scores'].argmax())
        for name in ('cat', 'dog', 'fish'):
            (root / 'classes' / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / 'classes' / ('cat', 'dog', 'fish')[label])
    found['classification'] = Source(model, 'classification', cfg, {}), graph
    return found


NAMES = dict(
    detection={'coco/bbox_mAP', 'coco/segm_mAP'},
    segmentation={'mIoU'},
    classification={'accuracy/top1'},
)
BREAKS = {
    'labels': ('detection', lambda x: dict(labels=torch.where(x['labels'] < 0, -1, 0))),
    'x and y': ('detection', lambda x: dict(boxes=x['boxes'][..., [1, 0, 3, 2]])),
    'masks': ('detection', lambda x: dict(masks=x['masks'].transpose(2, 3))),
    'nothing': ('detection', lambda x: dict(labels=torch.full_like(x['labels'], -1))),
    'mirrored': ('segmentation', lambda x: dict(logits=x['logits'].flip(3))),
    'classes': ('classification', lambda x: dict(scores=x['scores'].roll(1, 1))),
}


@pytest.mark.parametrize('task', NAMES)
def test_a_file_that_computes_what_the_model_does_has_its_metric(task, sources, tmp_path):
    source, graph = sources[task]
    evaluation = Evaluation(source, graph)
    assert evaluation.expected.keys() == NAMES[task]
    assert min(evaluation.expected.values()) > 50  # masks of overlapping objects may be equal
    found = evaluation(run_of(graph))
    assert found == evaluation.expected
    prove_metrics(evaluation, found, tmp_path / 'x.onnx', about := {})
    assert json.loads((tmp_path / 'x.json').read_text()) == about
    for name, break_ in BREAKS.values():
        if name == task:
            run = run_of(graph)
            found = evaluation(
                lambda image, run=run, change=break_: {**(x := run(image)), **change(x)}
            )
            with pytest.raises(UserError, match='off by'):
                prove_metrics(evaluation, found, tmp_path / 'x.onnx', {})


def test_predictions_are_compared_at_the_original_size_of_images(sources):
    source, graph = sources['detection']
    source = Source(source.model, source.task, copy.deepcopy(source.cfg), {})
    source.cfg.test_dataloader.dataset.pipeline[1] = WIDER
    evaluation = Evaluation(source, graph)
    assert evaluation.expected['coco/bbox_mAP'] > 0.5
    assert evaluation(run_of(graph)) == evaluation.expected


def test_what_cannot_be_evaluated_is_said(sources):
    source, graph = sources['detection']
    with pytest.raises(UserError, match='features'):
        Evaluation(source, build_graph(source.model, 'detection', True, False, None))
    other = Source(source.model, source.task, copy.deepcopy(source.cfg), {})
    other.cfg.test_dataloader.dataset.data_root = 'missing'
    with pytest.raises(UserError, match='missing'):
        Evaluation(other, graph)
    other.cfg.test_evaluator = None
    with pytest.raises(UserError, match='test_evaluator'):
        Evaluation(other, graph)
    one_size = build_graph(source.model, 'detection', False, False, (32, 40)).eval()
    with pytest.raises(UserError, match='64x64'):
        Evaluation(source, one_size)


@pytest.fixture(scope='module')
def file(sources, tmp_path_factory):
    """The classifier as an ONNX file."""
    source, _ = sources['classification']
    file = tmp_path_factory.mktemp('file') / 'classifier.onnx'
    config, weights = file.with_name('classes.py'), file.with_name('weights.pth')
    source.cfg.dump(config)
    torch.save(dict(meta={}, state_dict=source.model.state_dict()), weights)
    succeed('export.py', config, '--checkpoint', weights, '--static', '64x64', '--out', file)
    return config, weights, file


@pytest.mark.slow
@pytest.mark.parametrize(('precision', 'share'), [('float16', 0.65), ('int8', 0.5)])
def test_a_smaller_file_has_nearly_the_metric_of_the_model(precision, share, file, tmp_path):
    config, weights, whole = file
    small = tmp_path / 'small.onnx'
    arguments = (config, '--checkpoint', weights, '--static', '64x64', '--out', small)
    output = succeed('export.py', *arguments, '--precision', precision)
    assert 'accuracy/top1: 100.0 with the file' in output
    assert f'ONNX Runtime {precision}' in output and 'ONNX Runtime float32' in output
    assert small.stat().st_size < share * whole.stat().st_size
    about = json.loads((tmp_path / 'small.json').read_text())
    assert about['metrics'] == {'accuracy/top1': dict(file=100.0, model=100.0)}
    assert about['precision'] == precision and about['float32_blocks'] == []
    assert FilePredictor(str(small)).about['precision'] == precision


@pytest.mark.slow
def test_blocks_stay_float32_until_the_loss_is_small(file, sources, tmp_path):
    *_, whole = file
    source, _ = sources['classification']
    graph = build_graph(source.model, 'classification', False, False, (64, 64)).eval()

    class Strict(Evaluation):
        """Loses a point for each tenth of the weights that is not float32."""

        def __call__(self, run):
            size = (tmp_path / 'x.onnx').stat().st_size
            return {'accuracy/top1': 100 - 10 * (1 - size / whole.stat().st_size)}

    images = read_images(source.cfg, None)
    about = dict(test_pipeline=[], task='classification')
    for most, is_possible in ((1.5, True), (-1, False)):
        shutil.copy(whole, tmp_path / 'x.onnx')
        evaluation = Strict(source, graph, most)
        if is_possible:
            reduce(tmp_path / 'x.onnx', 'float16', graph, images, evaluation, about)
            assert 'backbone.stages.3' in about['float32_blocks']  # it has most weights
            assert 'backbone.stages.0' not in about['float32_blocks']
        else:
            with pytest.raises(UserError, match='--max-loss'):
                reduce(tmp_path / 'x.onnx', 'float16', graph, images, evaluation, about)


def test_a_smaller_file_needs_data_and_onnx(sources, tmp_path):
    config = tmp_path / 'config.py'
    cfg = copy.deepcopy(sources['classification'][0].cfg)
    cfg.test_dataloader.dataset.data_root = 'missing'
    cfg.dump(config)
    arguments = (config, '--random-weights', '--precision', 'int8', '--out')
    assert 'missing' in fail('export.py', *arguments, tmp_path / 'x.onnx')
    assert '.onnx' in fail('export.py', *arguments, tmp_path / 'x.pt2')
    for loss in ('nan', '-1'):
        error = fail('export.py', *arguments, tmp_path / 'x.onnx', f'--max-loss={loss}')
        assert '--max-loss' in error
    assert {path.name for path in tmp_path.iterdir()} == {'config.py'}

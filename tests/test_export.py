"""Exported files compute what the model does, wherever they run and whatever the image's size."""

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import NANO, fail, succeed
from mmengine.registry import MODELS
from PIL import Image
from reference import CASES, differences, image, tensor, write_official
from torch import nn

from gcvit_mm import GCViT
from gcvit_mm.errors import UserError
from gcvit_mm.export.build import build_graph
from gcvit_mm.export.check import compare
from gcvit_mm.export.files import check_target
from gcvit_mm.export.graph import (
    BAR,
    Classifier,
    Features,
    Labeller,
    Segmenter,
    _AdaptiveAvgPool,
)
from gcvit_mm.export.proof import prove
from gcvit_mm.models.attention import eager_attention, padded_attention
from gcvit_mm.models.position_bias import PositionBias
from gcvit_mm.models.windows import relative_position_index

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
CLASSES = ('cat', 'dog', 'fish')
CONFIG = f"""
custom_imports = dict(imports=['gcvit_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
data_preprocessor = dict(mean={MEAN.tolist()}, std={STD.tolist()}, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='GCViT',
        arch=dict(
            dim=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), mlp_ratio=2, layer_scale=0.5,
            drop_path_rate=0.1,
        ),
        window_size=(7, 7, 14, 7),
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=256),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
test_dataloader = dict(
    dataset=dict(type='CustomDataset', metainfo=dict(classes={CLASSES}), pipeline=pipeline)
)
"""


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> SimpleNamespace:
    """A small classifier of our own: config, checkpoint and model."""
    folder = tmp_path_factory.mktemp('classifier')
    config = folder / 'my_classifier.py'
    config.write_text(CONFIG)
    scope: dict = {}
    exec(CONFIG, scope)
    torch.manual_seed(1)
    with MODELS.switch_scope_and_registry('mmpretrain'):
        model = MODELS.build({**scope['model'], 'data_preprocessor': scope['data_preprocessor']})
    with torch.no_grad():
        for parameter in model.parameters():  # biases and scales matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint = folder / 'weights.pth'
    torch.save(dict(meta={}, state_dict=model.state_dict()), checkpoint)
    return SimpleNamespace(config=config, checkpoint=checkpoint, model=model.eval(), folder=folder)


@pytest.fixture(scope='module')
def segmenter() -> nn.Module:
    from gcvit_mm.config import read_config

    cfg = read_config('upernet_gcvit_nano_shapes')
    torch.manual_seed(1)
    with MODELS.switch_scope_and_registry('mmseg'):
        return MODELS.build(cfg.model).eval()


def pictures(batch: int, height: int, width: int) -> np.ndarray:
    """Random RGB images."""
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def worst(graph: nn.Module, run: object) -> float:
    """The largest difference of ``run`` from the model, relative to what is accepted."""
    noise = [Image.fromarray(pictures(1, 40, 60)[0])]
    return max(one.excess for one in compare(graph, run, noise))


def logits_of(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """What the model gives for images that are normalised here."""
    normalised = torch.from_numpy((images - MEAN) / STD).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        return model.head(model.extract_feat(normalised)).numpy()


# --- The file ---------------------------------------------------------------------------------

# A process that has neither PyTorch nor this package.
ELSEWHERE = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map['gcvit_mm'])
found = {}
for path in sys.argv[2:]:
    outputs = session.run(list(about['outputs']), {about['input']['name']: np.load(path)})
    found[path] = {name: x.tolist() for name, x in zip(about['outputs'], outputs)}
assert 'torch' not in sys.modules and 'gcvit_mm' not in sys.modules
json.dump(dict(about=about, found=found), sys.stdout)
"""


@pytest.mark.slow
def test_onnxruntime_alone_gives_what_the_model_does_for_images_of_any_size(classifier, tmp_path):
    file = tmp_path / 'classifier.onnx'
    arguments = (classifier.config, '--checkpoint', classifier.checkpoint, '--out', file)
    output = succeed('export.py', *arguments)
    assert '512' in output and 'PyTorch' in output
    beside = {'classifier.json', 'classifier.worst.png', 'classifier_onnx.py'}
    assert {path.name for path in tmp_path.iterdir()} == {'classifier.onnx', *beside}

    cases = {}
    for shape in [(1, 1, 1), (2, 37, 50), (5, 224, 224), (1, 128, 448), (1, 300, 225)]:
        path = tmp_path / f'{shape}.npy'
        np.save(path, pictures(*shape))
        cases[str(path)] = logits_of(classifier.model, pictures(*shape))
    ran = subprocess.run(
        [sys.executable, '-I', '-c', ELSEWHERE, file, *cases], text=True, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    for path, logits in cases.items():
        found = {name: np.array(x) for name, x in result['found'][path].items()}
        assert np.abs(found['logits'] - logits).max() < 1e-4, path
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert np.abs(found['scores'] - scores).max() < 1e-4, path

    about = result['about']
    assert about['classes'] == list(CLASSES)
    assert about['weights'] == 'weights.pth' and about['config'] == 'my_classifier'
    assert about['input'] == dict(
        name='image', dtype='uint8', shape=['N', 'H', 'W', 3], channels='RGB'
    )
    beside = json.loads(file.with_suffix('.json').read_text())
    assert all(x['off_by']['logits'] < 1e-4 for x in beside.pop('comparison'))
    assert beside == about


@pytest.mark.slow
def test_a_pt2_file_gives_what_the_model_does_for_images_of_any_size(classifier, tmp_path):
    file = tmp_path / 'classifier.pt2'
    arguments = (classifier.config, '--checkpoint', classifier.checkpoint, '--out', file)
    succeed('export.py', *arguments)
    extra = {'gcvit_mm.json': ''}
    run = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra['gcvit_mm.json'])['classes'] == list(CLASSES)
    for shape in [(1, 1, 1), (2, 37, 50), (4, 225, 130)]:
        images = pictures(*shape)
        found = run(torch.from_numpy(images))['logits'].detach().numpy()
        assert np.abs(found - logits_of(classifier.model, images)).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    'arguments',
    [
        ('upernet_gcvit_nano_shapes', '--argmax', '--random-weights', '--out', 'labels.onnx'),
        (NANO, '--what', 'features', '--checkpoint', 'TRAINED', '--out', 'pyramid.onnx'),
        (NANO, '--what', 'features', '--random-weights', '--static', '90x70', '--out', 'one.pt2'),
    ],
    ids=lambda arguments: arguments[-1],
)
def test_each_kind_of_model_exports_and_equals_pytorch(arguments, trained, tmp_path):
    *arguments, name = [str(trained.checkpoint) if a == 'TRAINED' else a for a in arguments]
    output = succeed('export.py', *arguments, tmp_path / name)
    assert f'{name}: ' in output  # written, so it passed
    outputs = json.loads((tmp_path / name).with_suffix('.json').read_text())['outputs']
    if 'features' in arguments:
        assert list(outputs) == ['stride4', 'stride8', 'stride16', 'stride32']
    elif 'labels' in name:
        assert outputs == dict(labels=dict(dtype='uint8', shape=['N', 'H', 'W']))


# --- What is refused --------------------------------------------------------------------------


def test_a_file_that_computes_something_else_is_refused(classifier, tmp_path):
    graph = Classifier(classifier.model)
    graph.size = (40, 60)  # one size is enough here
    assert worst(graph, graph) < 1

    def slightly_off(images):
        outputs = graph(images)
        return {**outputs, 'logits': outputs['logits'] + 2.5 * BAR}

    assert worst(graph, slightly_off) > 1
    assert worst(graph, lambda x: {k: v * torch.nan for k, v in graph(x).items()}) == np.inf
    assert worst(graph, lambda x: {k: v[:1] for k, v in graph(x).items()}) == np.inf

    noise = [Image.fromarray(pictures(1, 40, 60)[0])]
    about = dict(task='classification', outputs=graph.outputs)
    with pytest.raises(UserError, match=r'logits are off by \d\.\de-04'):
        prove(graph, slightly_off, noise, tmp_path / 'x.onnx', about)
    assert (tmp_path / 'x.worst.png').exists()


def test_what_a_segmenters_preprocessor_pads_is_no_part_of_its_features(segmenter):
    model = copy.deepcopy(segmenter)
    model.data_preprocessor.test_cfg = dict(size_divisor=32)  # as Mask2Former has it
    graph = Features(model)
    graph.size = (40, 60)
    assert worst(graph, graph) < 1


def test_labels_that_are_not_the_best_are_refused(segmenter):
    graph = Labeller(segmenter)
    graph.size = (40, 60)
    assert worst(graph, graph) < 1
    assert worst(graph, lambda images: dict(labels=(graph(images)['labels'] + 1) % 4)) > 1


@pytest.mark.parametrize('threshold', [0.3, 0.6])
def test_a_head_with_one_channel_gives_the_labels_of_the_package(threshold):
    from gcvit_mm.config import read_config

    cfg = read_config('upernet_gcvit_nano_shapes')
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    cfg.model.decode_head.update(
        num_classes=2, out_channels=1, threshold=threshold, loss_decode=loss
    )
    torch.manual_seed(1)
    with MODELS.switch_scope_and_registry('mmseg'):
        model = MODELS.build(cfg.model).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    size = (40, 60)
    graph = build_graph(model, 'segmentation', False, True, size)
    image = torch.from_numpy(pictures(2, *size))
    labels = graph(image)['labels']
    own = model.test_step(dict(inputs=list(image.flip(3).permute(0, 3, 1, 2))))
    expected = torch.cat([sample.pred_sem_seg.data for sample in own])
    assert len(labels.unique()) == 2
    assert torch.equal(labels, expected.to(torch.uint8))
    assert worst(graph, graph) < 1
    assert worst(graph, lambda x: dict(labels=torch.zeros_like(graph(x)['labels']))) > 1
    logits = build_graph(model, 'segmentation', False, False, size)
    assert worst(logits, logits) < 1
    map_ = logits(image)['logits']
    assert map_.shape == (2, 1, *size)
    assert torch.equal(map_[:, 0].sigmoid() > threshold, labels.bool())


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(task='segmentation', features=True, argmax=True), '--argmax is for'),
        (dict(task='classification', argmax=True), '--argmax is for'),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_said(options, said, segmenter):
    with pytest.raises(UserError, match=said):
        build_graph(segmenter, **{'features': False, 'argmax': False, 'size': None, **options})


def test_a_segmenter_whose_head_gives_no_logits_is_refused(segmenter):
    class Head(type(segmenter.decode_head)):
        def predict_by_feat(self, *arguments):
            return None

    model = copy.copy(segmenter)
    model._modules = {**model._modules, 'decode_head': Head.__new__(Head)}
    with pytest.raises(UserError, match='Head cannot be exported'):
        build_graph(model, 'segmentation', False, False, None)


@pytest.mark.parametrize(
    ('name', 'said'),
    [('x.tflite', 'ends in .onnx, .xml or .pt2'), ('missing/x.onnx', 'missing does not exist')],
)
def test_a_place_that_cannot_be_written_to_is_said_before_the_work(name, said, tmp_path):
    with pytest.raises(UserError, match=said):
        check_target(tmp_path / name)


def test_weights_of_another_model_are_refused(classifier, trained, tmp_path):
    error = fail(
        'export.py', NANO, '--checkpoint', classifier.checkpoint, '--out', tmp_path / 'x.onnx'
    )
    assert 'weights.pth' in error and 'does not fit' in error
    assert not list(tmp_path.iterdir())


# --- Its parts --------------------------------------------------------------------------------


@pytest.mark.parametrize('tag', [tag for tag in CASES if tag.startswith('det_xxtiny')])
def test_the_model_that_is_traced_gives_the_outputs_of_the_official_one(tag, tmp_path):
    file = write_official(tmp_path / 'official.pth.tar', CASES[tag]['variant'])
    backbone = GCViT(
        CASES[tag]['variant'],
        window_size=CASES[tag]['windows'],
        init_cfg=dict(type='Pretrained', checkpoint=file),
    ).eval()
    backbone.init_weights()
    with torch.no_grad():
        for i in range(4):
            for name, parameter in backbone.get_submodule(f'norm{i}').named_parameters():
                parameter.copy_(tensor(f'norm{i}.{name}', tuple(parameter.shape)))
    model = nn.Module()
    model.backbone, model.data_preprocessor = backbone, nn.Module()
    with torch.no_grad():
        maps = Features(model).compute(image(tag, CASES[tag]['shape']))
    assert [*maps] == ['stride4', 'stride8', 'stride16', 'stride32']
    outputs = {f'out{i}': x for i, x in enumerate(maps.values())}
    assert max(differences(tag, outputs).values()) < 1e-4


@pytest.mark.parametrize('size', [(7, 7), (14, 21), (3, 5), (15, 6), (22, 29)])
@pytest.mark.parametrize('has_global_query', [False, True])
def test_attention_in_padded_windows_is_that_of_the_reference(size, has_global_query):
    torch.manual_seed(0)
    window, heads, dim = 7, 2, 8
    table = torch.randn((2 * window - 1) ** 2, heads)
    bias = PositionBias(table, relative_position_index(window), window)
    query = torch.randn(2, heads, window**2, dim // heads) if has_global_query else None
    channels = dim * (2 if has_global_query else 3)
    inputs = torch.randn(2, *size, channels), torch.randn(channels), query, bias
    torch.testing.assert_close(padded_attention(*inputs), eager_attention(*inputs))


@pytest.mark.parametrize('output', [1, 2, 3, 6, (2, 5)])
@pytest.mark.parametrize('size', [(1, 1), (4, 9), (6, 6), (17, 5)])
def test_pooling_by_matrix_products_is_adaptive_pooling(output, size):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(_AdaptiveAvgPool(output)(x), nn.AdaptiveAvgPool2d(output)(x))


def test_the_original_is_left_as_it_was(segmenter):
    before = {name: str(type(module)) for name, module in segmenter.named_modules()}
    Segmenter(segmenter)
    assert before == {name: str(type(module)) for name, module in segmenter.named_modules()}
    assert all(parameter.requires_grad for parameter in segmenter.parameters())


def test_a_model_that_is_exported_keeps_its_way_to_predict(segmenter):
    segmenter.test_cfg['mode'] = 'slide'
    try:
        graph = build_graph(segmenter, 'segmentation', features=False, argmax=False, size=None)
        assert graph.original.test_cfg['mode'] == 'whole'
        assert segmenter.test_cfg['mode'] == 'slide'
    finally:
        segmenter.test_cfg['mode'] = 'whole'

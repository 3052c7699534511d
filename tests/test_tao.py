"""TAO's detectors after conversion compute what TAO computes, in float64, and no tensor is lost."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT, fail, succeed
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from reference import image, tensor

from gcvit_mm import GCViT, Predictor
from gcvit_mm.config import build_model, read_config
from gcvit_mm.weights.convert import convert
from gcvit_mm.weights.files import read_checkpoint
from gcvit_mm.weights.load import load_pretrained, mismatches
from gcvit_mm.weights.tao import COCO_ROWS, convert_detector

GOLDEN = Path(__file__).parent / 'golden_tao'
CASES = ['dino_192x256', 'dino_padded', 'ddetr_192x256', 'ddetr_padded']


def keys(name: str) -> dict:
    return json.loads((GOLDEN / f'{name}_keys.json').read_text())


def tao_state(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a model as TAO's file has them, with copies of the tied ones."""
    listed = {'aliases': {}, 'scales': {}, **keys(name)}
    state = {
        key: tensor(key, tuple(shape)) * np.float32(listed['scales'].get(key, 1))
        for key, shape in listed['keys'].items()
        if key not in listed['aliases']
    }
    state |= {alias: state[own].clone() for alias, own in listed['aliases'].items()}
    index = torch.zeros(49, 49, dtype=torch.int64)
    return state | dict.fromkeys(listed['index_buffers'], index)


@pytest.fixture(scope='module')
def states() -> dict[str, dict[str, torch.Tensor]]:
    return {name: tao_state(name) for name in ('dino', 'ddetr')}


def build(detector, **model) -> torch.nn.Module:
    cfg = read_config(detector.config)
    cfg.merge_from_dict({'model': {**detector.model, **model}})
    cfg.model.backbone.init_cfg = None
    built = build_model(cfg)
    built.load_state_dict(detector.tensors)  # strict
    return built.double().eval()


def inputs_of(case: str):
    """The padded images of a case, and what mmdet knows of them."""
    from mmdet.structures import DetDataSample

    about = json.loads((GOLDEN / f'{case}.json').read_text())
    size = tuple(about['padded_size'])
    batch = torch.zeros(len(about['images']), 3, *size, dtype=torch.float64)
    samples = []
    for row, single in zip(batch, about['images'], strict=True):
        height, width = single['size']
        row[:, :height, :width] = image(single['name'], (1, 3, height, width))[0]
        samples.append(DetDataSample(metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width), batch_input_shape=size,
            pad_shape=size, scale_factor=(1.0, 1.0),
        )))  # fmt: skip
    return batch, samples


@torch.no_grad()
def outputs_of(model, batch, samples) -> tuple[dict[str, torch.Tensor], list]:
    """What the golden files have, by their names, and mmdet's predictions."""
    found = {f'backbone{i}': x for i, x in enumerate(model.backbone(batch))}
    necks = model.neck([found[f'backbone{i}'] for i in range(3)])
    found |= {f'neck{i}': x for i, x in enumerate(necks)}
    memory = []
    hook = model.encoder.register_forward_hook(lambda *a: memory.append(a[2]))
    states = model.forward_transformer(necks, samples)
    hook.remove()
    classes, boxes = model.bbox_head(states['hidden_states'], states['references'])
    found |= {'memory': memory[0], 'pred_logits': classes[-1], 'pred_boxes': boxes[-1]}
    found |= {f'aux{i}_boxes': x for i, x in enumerate(boxes[:-1])}
    return found, model.bbox_head.predict(**states, batch_data_samples=samples, rescale=True)


def errors(case: str, outputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference to TAO of each output, of classes that have a row."""
    golden = np.load(GOLDEN / f'{case}.npz')
    found = {}
    for name, output in outputs.items():
        values = output.numpy()
        if name == 'pred_logits' and values.shape[-1] == 80:
            everything = np.full((*values.shape[:-1], 91), np.nan)
            everything[..., COCO_ROWS] = values
            values = everything
        if f'{name}.index' in golden:
            values, expected = values.ravel()[golden[f'{name}.index']], golden[f'{name}.value']
        else:
            expected = golden[name]
        assert np.isfinite(values).mean() > 0.8
        found[name] = np.nanmax(np.abs(values - expected))
    return found


def tao_post_process(logits, boxes, ori_shape, count):
    """The best pairs of a query and a class, as TAO selects them; pixels of the original image."""
    scores, places = logits.sigmoid().flatten().topk(count)
    x, y, w, h = boxes[places // logits.shape[1]].unbind(1)
    height, width = ori_shape
    corners = torch.stack([(x - w / 2) * width, (y - h / 2) * height,
                           (x + w / 2) * width, (y + h / 2) * height], 1)  # fmt: skip
    limits = torch.tensor([width, height, width, height], dtype=torch.float64)
    return scores, places % logits.shape[1], corners.clamp(min=0).minimum(limits)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ('case', 'all_rows'),
    [
        ('dino_padded', True),
        ('ddetr_padded', False),
        pytest.param('dino_192x256', True, marks=slow),
        pytest.param('ddetr_192x256', True, marks=slow),
        pytest.param('ddetr_192x256', False, marks=slow),
        pytest.param('ddetr_padded', True, marks=slow),
    ],
)
def test_outputs_and_predictions_are_those_of_tao(case, all_rows, states):
    model = build(convert_detector(states[case.split('_')[0]], all_rows))
    batch, samples = inputs_of(case)
    for sample in samples:  # of an image that was halved before
        shape = tuple(2 * side for side in sample.img_shape)
        sample.set_metainfo(dict(ori_shape=shape, scale_factor=(0.5, 0.5)))
    outputs, predictions = outputs_of(model, batch, samples)
    found = errors(case, outputs)
    assert len(found) >= 14
    assert max(found.values()) < 5e-6, found
    count = 300 if 'dino' in case else 100
    for i, (sample, got) in enumerate(zip(samples, predictions, strict=True)):
        logits, boxes = outputs['pred_logits'][i], outputs['pred_boxes'][i]
        scores, labels, corners = tao_post_process(logits, boxes, sample.ori_shape, count)
        assert torch.equal(got.labels, labels)
        assert torch.allclose(got.scores, scores, atol=1e-6)
        assert (got.bboxes - corners).abs().max() < 1e-3


def without_unused_rows(state):
    """TAO's DINO whose 11 rows without a class never win."""
    unused = [i for i in range(91) if i not in COCO_ROWS]
    for name, value in state.items():
        if 'class_embed' in name and name.endswith('bias'):
            state[name] = value.clone().index_fill(0, torch.tensor(unused), -1000)
    return state


@pytest.mark.slow
def test_80_rows_of_dino_compute_what_91_do_if_no_unused_row_wins(states):
    batch, samples = inputs_of('dino_padded')
    outputs = []
    for all_rows in (True, False):
        detector = convert_detector(without_unused_rows(dict(states['dino'])), all_rows)
        outputs.append(outputs_of(build(detector), batch, samples)[0])
    outputs[0]['pred_logits'] = outputs[0]['pred_logits'][..., COCO_ROWS]
    for name, output in outputs[1].items():
        assert torch.allclose(output, outputs[0][name], atol=1e-9), name


def test_the_rows_are_coco_s_80_categories_in_mmdets_order():
    ids = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70]
    ids += [*range(72, 83), *range(84, 91)]  # of COCO's annotation files
    assert ids == COCO_ROWS and len(ids) == 80


@pytest.mark.parametrize(
    ('name', 'count', 'index', 'copies'), [('dino', 788, 31, 48), ('ddetr', 771, 31, 36)]
)
def test_every_tensor_is_converted_or_listed(name, count, index, copies, states):
    detector = convert_detector(states[name])
    assert len(detector.tensors) == count
    assert [len(names) for names in detector.skipped.values()] == [index, copies]
    assert len(states[name]) == count + index + copies


# --- Backbones --------------------------------------------------------------------------------


@pytest.mark.parametrize('case', ['gcvit_xxtiny_131x205', 'gcvit_tiny_150x97'])
@pytest.mark.parametrize('prefix', ['', 'module.backbone.'])
def test_a_backbones_file_is_an_init_cfg(case, prefix, tmp_path):
    about = json.loads((GOLDEN / f'{case}.json').read_text())
    name = case.rsplit('_', 1)[0]
    file = tmp_path / 'backbone.pth'
    torch.save({'state_dict': {prefix + k: v for k, v in tao_state(name).items()}}, file)
    model = GCViT(name.split('_')[1])
    report = load_pretrained(model, str(file))
    assert not report.new
    with torch.no_grad():
        outputs = model.double().eval()(image(about['image'], about['shape']).double())
    assert max(errors(case, {f'out{i}': x for i, x in enumerate(outputs)}).values()) < 5e-6


# --- The tool ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def small(states):
    """TAO's detectors with the smallest backbone and two layers, as a Lightning file has them."""

    def make(name: str) -> dict:
        body = 'model.model.backbone.0.body.'
        state = {
            key: value
            for key, value in states[name].items()
            if not re.search(r'(coder\.layers|(class|bbox)_embed)\.[2-5]\.', key)
            and not key.startswith(body)
        }
        backbone = {k: v for k, v in tao_state('gcvit_xxtiny').items() if 'norm0.' not in k}
        state |= {body + key: value for key, value in backbone.items()}
        return {'epoch': 11, 'state_dict': state, 'optimizer_states': [], 'tao_model': name}

    return make


@pytest.mark.parametrize('name', ['dino', 'ddetr'])
def test_the_tool_writes_weights_and_the_config_that_they_need(name, small, tmp_path):
    source, target = tmp_path / 'tao.pth', tmp_path / 'ours.safetensors'
    torch.save(small(name), source)
    output = succeed('convert_checkpoint.py', source, target, '--task', 'detection')
    assert 'with GC ViT xxtiny' in output and '80 classes' in output
    cfg = Config.fromfile(tmp_path / 'ours.py')
    assert (cfg.model.encoder.num_layers, cfg.model.decoder.num_layers) == (2, 2)
    assert cfg.model.num_queries == (900 if name == 'dino' else 300)
    assert cfg.model.encoder.layer_cfg.ffn_cfg.feedforward_channels == (
        2048 if name == 'dino' else 1024
    )
    cfg.model.data_preprocessor.sides = (192, 256)
    cfg.test_dataloader.dataset.pipeline[1].scale = (128, 200)
    cfg.dump(tmp_path / 'small.py')
    predictor = Predictor(tmp_path / 'small.py', target)
    sizes = []
    predictor.model.backbone.register_forward_hook(lambda *a: sizes.append(a[1][0].shape[2:]))
    pixels = np.random.default_rng(0).integers(0, 255, (100, 70, 3), dtype=np.uint8)
    for picture, size in ((pixels, (256, 192)), (pixels.transpose(1, 0, 2), (192, 256))):
        (sample,) = predictor(np.ascontiguousarray(picture))
        assert sizes.pop() == size
        assert len(sample.pred_instances) == (300 if name == 'dino' else 100)
        boxes, (height, width) = sample.pred_instances.bboxes, picture.shape[:2]
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert boxes[:, 2].max() > 0.9 * width  # of the image, not of the padding
    error = fail('convert_checkpoint.py', source, tmp_path / 'ours.pth', '--task', 'detection')
    assert 'ours.py exists' in error and '--force' in error


def test_all_rows_can_be_kept(small, tmp_path):
    torch.save(small('ddetr'), tmp_path / 'tao.pth')
    arguments = [tmp_path / 'tao.pth', tmp_path / 'ours.pth', '--task', 'detection', '--all-rows']
    assert '91 classes' in succeed('convert_checkpoint.py', *arguments)
    predictor = Predictor(tmp_path / 'ours.py', tmp_path / 'ours.pth', 'cpu')
    assert len(predictor.classes) == 91


def spoilt(content: dict, how: str) -> dict:
    state = content['state_dict']
    if how == 'encrypted':
        return {**content, 'state_dict': b'\x00' * 64, 'state_dict_encrypted': True}
    if how == 'encoder norm':
        state['model.model.transformer.encoder.norm.weight'] = torch.ones(256)
    elif how == 'torn tie':
        state['model.model.class_embed.1.bias'] = torch.ones(91)
    elif how == 'distilled':
        state['model.teacher.level'] = torch.ones(1)
    elif how == 'missing':
        del state['model.model.transformer.encoder.layers.1.norm2.weight']
    elif how == 'no GC ViT':
        return {'state_dict': {k: v for k, v in state.items() if 'backbone' not in k}}
    elif how == 'no detector':
        return {'state_dict': {k: v for k, v in state.items() if 'backbone' in k}}
    return content


@pytest.mark.parametrize(
    ('how', 'words'),
    [
        ('encrypted', ['encrypted']),
        ('encoder norm', ['unknown tensor', 'transformer.encoder.norm.weight']),
        ('torn tie', ['class_embed', 'differs from its copy']),
        ('distilled', ['unknown tensor', 'model.teacher.level']),
        ('missing', ['does not fit', 'encoder.layers.1.norms.1.weight']),
        ('no GC ViT', ['no GC ViT']),
        ('no detector', ['no detector', '--task']),
    ],
)
def test_what_is_not_such_a_detector_is_refused_and_nothing_is_written(how, words, small, tmp_path):
    source, target = tmp_path / 'tao.pth', tmp_path / 'ours.pth'
    torch.save(spoilt(small('dino'), how), source)
    error = fail('convert_checkpoint.py', source, target, '--task', 'detection')
    assert str(source) in error
    assert all(word in error for word in words), error
    assert [path.name for path in tmp_path.iterdir()] == ['tao.pth']


def test_its_backbone_alone_is_converted_too(states):
    conversion = convert(states['dino'], 'dense')
    assert conversion.variant == 'GC ViT tiny'
    assert {'transformer', 'input_proj', 'class_embed'} <= conversion.skipped.keys()
    model = GCViT('tiny', out_indices=(1, 2, 3))
    assert not mismatches(model, conversion.tensors)


# --- Training and preparing -------------------------------------------------------------------


@pytest.mark.parametrize('name', ['dino', 'ddetr'])
def test_a_converted_detector_is_fine_tuned_on_other_classes(name, small, tiny_shapes, tmp_path):
    torch.save(small(name), tmp_path / 'tao.pth')
    arguments = [tmp_path / 'tao.pth', tmp_path / 'ours.pth', '--task', 'detection']
    succeed('convert_checkpoint.py', *arguments)
    cfg = Config.fromfile(tmp_path / 'ours.py')
    cfg.load_from = str(tmp_path / 'ours.pth')
    cfg.model.bbox_head.num_classes, cfg.model.num_queries = 3, 50
    cfg.model.test_cfg.max_per_img = 50
    cfg.model.data_preprocessor.sides = (64, 64)
    cfg.train_cfg.max_epochs = cfg.default_hooks.logger.interval = 1
    del cfg.train_dataloader.dataset.pipeline[2:4]  # flips and sizes
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    cfg.val_dataloader = cfg.test_dataloader
    for loader, folder in (('train', 'training'), ('val', 'validation'), ('test', 'validation')):
        file = f'annotations/instances_{folder}.json'
        cfg[f'{loader}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{loader}_dataloader'].dataset.update(
            data_root=str(tiny_shapes), ann_file=file, data_prefix=dict(img=f'images/{folder}'),
            metainfo=dict(classes=('disk', 'box', 'star')),
        )  # fmt: skip
        if loader != 'train':
            cfg[f'{loader}_evaluator'].ann_file = str(tiny_shapes / file)
    cfg.dump(tmp_path / 'shapes.py')
    output = succeed('train.py', tmp_path / 'shapes.py', '--work-dir', tmp_path / 'work')
    assert 'tensors fit' in output and 'coco/bbox_mAP' in output
    trained = read_checkpoint(tmp_path / 'work/epoch_1.pth')['state_dict']
    heads = [trained[f'bbox_head.cls_branches.{i}.weight'] for i in range(2)]
    assert torch.equal(*heads) == (name == 'dino')  # TAO ties them in DINO only
    before = read_checkpoint(tmp_path / 'ours.pth')['state_dict']
    assert not torch.equal(trained['level_embed'], before['level_embed'])


@pytest.mark.parametrize(
    ('size', 'resized'),
    [((480, 640), (800, 1066)), ((640, 480), (1066, 800)), ((427, 640), (800, 1199)),
     ((333, 1000), (444, 1333)), ((800, 900), (800, 900))],
)  # fmt: skip
def test_images_are_resized_by_detrs_rule_and_pillow(size, resized):
    init_default_scope('mmdet')
    from mmengine.registry import TRANSFORMS

    import gcvit_mm.detectors  # noqa: F401

    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    resize = TRANSFORMS.build(dict(type='ResizeShorterSide', scale=(800, 1333)))
    results = resize(dict(img=pixels, img_shape=size))
    expected = Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.BILINEAR)
    assert results['img_shape'] == resized
    assert np.array_equal(results['img'], np.asarray(expected))


# --- mmdet's own DINO -------------------------------------------------------------------------


def test_a_dino_of_other_versions_of_mmdet_loads_and_computes_what_it_did_there(tmp_path):
    """Their encoding of a query has half the frequencies."""
    from mmdet.models.layers import DinoTransformerDecoder, coordinate_to_encoding
    from mmengine.runner import load_checkpoint

    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / 'configs/dino_gcvit_tiny_tao_coco.py')
    decoder = DinoTransformerDecoder(**{**cfg.model.decoder, 'num_layers': 1})
    narrow = {**decoder.state_dict()}
    name = 'ref_point_head.layers.0.weight'
    narrow[name] = torch.randn(256, 512)
    holder = torch.nn.ModuleDict({'decoder': decoder})
    state = {f'decoder.{k}': v for k, v in narrow.items()}
    assert not mismatches(holder, state)
    torch.save({'state_dict': state}, tmp_path / 'dino.pth')
    boxes = torch.rand(2, 5, 4)
    layer = decoder.ref_point_head.layers[0]
    expected = torch.nn.functional.linear(
        coordinate_to_encoding(boxes, num_feats=128), narrow[name], layer.bias
    )
    for load in (
        lambda: holder.load_state_dict(state),
        lambda: load_checkpoint(holder, str(tmp_path / 'dino.pth'), strict=True),
    ):
        torch.nn.init.zeros_(layer.weight)
        load()
        got = layer(coordinate_to_encoding(boxes, num_feats=layer.in_features // 4))
        assert torch.allclose(got, expected, atol=1e-4)
    assert state[f'decoder.{name}'].shape == (256, 512)

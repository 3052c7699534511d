"""Exported DINO and Mask2Former predict what mmdet and mmseg do."""

import pytest
import torch
from command_line import NANO, succeed
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm

from gcvit_mm.config import build_model, read_config
from gcvit_mm.errors import UserError
from gcvit_mm.export.build import build_graph
from gcvit_mm.export.check import compare, read_images

SMALL = {256: 64, 2048: 48, 1024: 48, 128: 32}
"""Widths of layers, and smaller ones."""
BACKBONE = read_config(NANO).model.backbone


def smaller(value):
    if isinstance(value, dict):
        return {key: smaller(item) for key, item in value.items()}
    return SMALL.get(value, value) if isinstance(value, int) else value


def config_of(name: str) -> Config:
    """A small model: of full width it would be traced for minutes."""
    cfg = read_config(name)
    model = cfg.model
    if 'dino' in name:
        transformer = ('encoder', 'decoder', 'positional_encoding', 'neck')
        model.update({key: smaller(model[key]) for key in transformer})
        model.backbone = dict(BACKBONE, out_indices=(1, 2, 3))
        model.neck.in_channels = [64, 128, 256]
        model.encoder.num_layers = model.decoder.num_layers = 2
        model.bbox_head.update(embed_dims=64, num_classes=3)
        model.update(num_queries=12, test_cfg=dict(max_per_img=9))
    else:
        model.backbone = dict(BACKBONE)
        model.decode_head = smaller(model.decode_head)
        head = model.decode_head
        head.update(num_classes=5, num_queries=7, in_channels=[32, 64, 128, 256])
        head.loss_cls.class_weight = [1.0] * 6
        head.pixel_decoder.encoder.num_layers = 2
        head.transformer_decoder.num_layers = 3
    return cfg


def make(name: str, argmax: bool = False, size: tuple[int, int] | None = None) -> tuple:
    """A model with random weights that attends to different places, and its graph."""
    torch.manual_seed(3)
    cfg = config_of(name)
    model = revert_sync_batchnorm(build_model(cfg)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.startswith('backbone'):
                parameter.add_(0.1 * torch.randn_like(parameter))
    task = 'detection' if 'dino' in name else 'segmentation'
    return model, build_graph(model, task, False, argmax, size).eval()


def run_of(graph):
    def run(image, **changes):
        with torch.no_grad():
            return graph(image)

    return run


SIZE = (90, 121)  # no multiples of 32
DINO, MASKS = 'dino_gcvit_large_coco', 'mask2former_gcvit_tiny_ade20k'
CASES = [(DINO, False), (MASKS, False), (MASKS, True)]


@pytest.mark.parametrize(('name', 'argmax'), CASES)
def test_the_graph_predicts_what_the_model_does(name, argmax):
    _, graph = make(name, argmax)
    graph.size = SIZE
    images = read_images(read_config(NANO), None)
    comparisons = compare(graph, run_of(graph), images)
    assert max(one.excess for one in comparisons) < 1
    assert len(comparisons) == 2
    if name == DINO:
        assert {len(x['boxes']) for one in comparisons for x in one.expected} == {9}
        assert len({int(i) for one in comparisons for x in one.expected for i in x['labels']}) > 1

    def wrong(image):
        outputs = run_of(graph)(image)
        return {key: (x + 1) % 5 if argmax else x.roll(1, 0) for key, x in outputs.items()}

    assert max(one.excess for one in compare(graph, wrong, images)) > 1


@pytest.mark.parametrize('part', ['encoder', 'decoder'])
def test_deformable_attention_is_in_what_is_compared(part):
    _, graph = make(DINO)
    graph.size = SIZE
    layer = getattr(graph.model, part).layers[0]
    attention = layer.self_attn if part == 'encoder' else layer.cross_attn
    torch.nn.init.zeros_(attention.sampling_offsets.bias)
    images = read_images(read_config(NANO), None)
    assert max(one.excess for one in compare(graph, run_of(graph), images)) > 1


def test_sizes_are_compared_for_which_mmdet_predicts():
    model, _ = make(DINO)
    model.num_queries = 400
    model.query_embedding = torch.nn.Embedding(400, 64)
    graph = build_graph(model, 'detection', False, False, None).eval()
    assert not graph.accepts((20, 33)) and not graph.accepts((96, 160))
    assert graph.accepts((224, 224)) and graph.accepts((512, 640))
    outputs = run_of(graph)(torch.zeros(1, 20, 33, 3, dtype=torch.uint8))
    assert outputs['boxes'].shape == (1, 9, 4)  # the file still predicts


def test_what_is_no_plain_dino_is_refused():
    model, _ = make(DINO)
    model.data_preprocessor.pad_size_divisor = 32
    with pytest.raises(UserError, match='pad_size_divisor'):
        build_graph(model, 'detection', False, False, None)
    model, _ = make(DINO)

    class Other(type(model)):
        def pre_decoder(self, *arguments):
            return None

    model.__class__ = Other
    with pytest.raises(UserError, match='with Other cannot be exported'):
        build_graph(model, 'detection', False, False, None)


@pytest.mark.slow
@pytest.mark.parametrize('name', [DINO, MASKS])
def test_a_file_in_onnx_runtime_predicts_what_the_model_does(name, tmp_path):
    config = tmp_path / 'small.py'
    config.write_text(config_of(name).pretty_text)
    arguments = ('--random-weights', '--static', '64x96', '--out', tmp_path / 'x.onnx')
    assert 'allowed' in succeed('export.py', config, *arguments)
    assert (tmp_path / 'x.onnx').exists()

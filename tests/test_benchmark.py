"""The benchmark: what it counts, what it times, and what it prints."""

import json

import pytest
import torch
from command_line import NANO, ROOT, call, fail, succeed
from torch import nn

from gcvit_mm.benchmark import Subject, build_subject, count_work, measure
from gcvit_mm.errors import UserError

CPU = torch.device('cpu')


def subject(name: str, **settings) -> Subject:
    defaults = dict(
        batch=1, size=(64, 64), training=False, dtype=torch.float32, device=CPU, counted=True
    )
    return build_subject(name, **{**defaults, **settings})


# --- Counting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'giga_multiplications'),
    # GC ViT's paper (table 1), Swin's, ConvNeXt's and torchvision's page, at 224 pixels.
    [
        ('gcvit_xxtiny', 2.1),
        ('gcvit_tiny', 4.7),
        ('swin_tiny', 4.5),
        ('convnext_tiny', 4.5),
        ('resnet50', 4.1),
    ],
)
def test_counted_arithmetic_is_the_published(name, giga_multiplications):
    model = subject(name, size=(224, 224), device=torch.device('meta'))
    assert count_work(model.step).flops / 2e9 == pytest.approx(giga_multiplications, rel=0.025)


def test_ours_and_timms_do_the_same_arithmetic():
    ours, theirs = (
        count_work(subject(name, size=(224, 224)).step).flops
        for name in ('gcvit_xxtiny', 'timm_gcvit_xxtiny')
    )
    assert ours == theirs


def test_bytes_are_those_of_inputs_weights_and_outputs():
    layer = nn.Linear(10, 20)
    work = count_work(lambda: layer(torch.ones(3, 10)))
    assert work.flops == 2 * 3 * 10 * 20
    assert work.bytes == 4 * (3 * 10 + 10 * 20 + 20 + 3 * 20)


def test_attention_scores_are_arithmetic_but_no_bytes():
    q = torch.ones(2, 4, 49, 32)
    work = count_work(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert work.flops == 2 * (2 * 2 * 4 * 49 * 49 * 32)
    assert work.bytes == 4 * q.nbytes


def test_other_batched_products_read_and_write_all_their_matrices():
    map_, weight = torch.ones(2, 49, 32), torch.ones(2, 32, 32)
    assert count_work(lambda: map_ @ weight).bytes == 2 * map_.nbytes + weight.nbytes


@pytest.mark.parametrize('name', ['resnet50', 'convnext_tiny'])
def test_training_does_three_times_the_arithmetic_of_inference(name):
    once, training = (
        count_work(subject(name, training=training).step).flops for training in (False, True)
    )
    # The images get no gradient.
    assert 2.8 * once < training < 3 * once


# --- Timing -----------------------------------------------------------------------------------


def test_models_take_turns():
    turns = []
    subjects = [
        Subject(name, nn.Identity(), lambda name=name: turns.append(name)) for name in 'abc'
    ]
    found = measure(subjects, CPU, repeat=4)
    assert turns[-12:] == [*'abc'] * 4
    assert [len(each.seconds) for each in found] == [4, 4, 4]


def test_peak_memory_is_the_most_that_is_held_at_once_with_the_model():
    model = nn.Linear(1000, 1000)

    def step() -> None:
        first = torch.empty(5_000_000)
        del first
        both = torch.empty(2_000_000), torch.empty(4_000_000)
        del both

    (found,) = measure([Subject('m', model, step)], CPU, repeat=1)
    assert found.peak_bytes == pytest.approx(4 * (6_000_000 + 1_001_000), rel=0.01)


def test_a_training_step_leaves_gradients_and_inference_none():
    for training in (False, True):
        model = subject('gcvit_xxtiny', training=training)
        model.step()
        found = [p.grad is not None for p in model.model.parameters()]
        assert all(found) if training else not any(found)


# --- The command ------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_compares_models_and_writes_json(tmp_path):
    output = succeed(
        'benchmark.py', 'gcvit_xxtiny', 'gcvit_xxtiny:window_size=4,4,8,4:attn_impl=eager',
        'configs/mask_rcnn_gcvit_nano_shapes.py', 'configs/upernet_gcvit_nano_shapes.py',
        '--size', '64x64', '64x96', '--batch', '2', '--mode', 'inference', 'training',
        '--repeat', '2', '--threads', '1', '--device', 'cpu', '--out', tmp_path / 'out.json',
    )  # fmt: skip
    assert output.count('images/s') == 4
    content = json.loads((tmp_path / 'out.json').read_text())
    assert content['machine']['threads'] == 1
    runs = content['runs']
    assert [(run['mode'], run['size']) for run in runs] == [
        (mode, size) for size in ([64, 64], [64, 96]) for mode in ('inference', 'training')
    ]
    for run in runs:
        ours, eager, detector, segmenter = run['models']
        assert eager['time_over'][ours['model']] == eager['seconds'] / ours['seconds']
        assert detector['peak_bytes'] > 4 * 3_506_432  # its parameters
        assert all(row['flops'] > 0 and row['bytes'] > 0 for row in run['models'])
        assert segmenter['images_per_second'] == 2 / segmenter['seconds']
    assert runs[0]['models'][0]['flops'] < runs[1]['models'][0]['flops']


def test_bfloat16_is_measured_as_well():
    output = succeed(
        'benchmark.py', 'gcvit_xxtiny', '--size', '64x64', '--mode', 'training', '--repeat', '1',
        '--dtype', 'bfloat16', '--device', 'cpu',
    )  # fmt: skip
    assert 'training, bfloat16, 1 image of 64x64' in output


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('gcvit_tinny', 'gcvit_tinny is unknown: choose gcvit_xxtiny, '),
        ('timm_nothing', 'timm has no model nothing'),
        ('resnet50:depht=18', 'resnet50 does not accept these options.*depht'),
        ('gcvit_tiny:window_size=7,7', 'window_size'),
        ('resnet50:fast', "'fast' must be key=value or compile"),
        ('configs/nothing.py', 'configs/nothing.py cannot be read'),
        ('mmdet::swin/nothing.py:model.x=1', 'mmdet::swin/nothing.py cannot be read'),
        (f'{ROOT}/{NANO}:model.backbone.nothing.x=1', "cannot be built.*'nothing'"),
    ],
)
def test_wrong_models_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        subject(name)


def test_wrong_requests_end_with_one_line():
    assert 'must be at least 1' in fail('benchmark.py', 'resnet50', '--repeat', '0')
    assert 'timm has no model nothing' in fail('benchmark.py', 'timm_nothing')
    assert 'folder nowhere' in fail('benchmark.py', 'resnet50', '--out', 'nowhere/out.json')
    assert "'gpu' is not cpu, cuda" in call('benchmark.py', '--device', 'gpu').stderr


def test_page_of_performance_says_what_the_measurements_say():
    succeed('performance_page.py', '--check')

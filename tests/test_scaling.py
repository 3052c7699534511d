"""What the figures of ``tools/scaling.py`` are: those of real models, optimizers and processes."""

import json
import subprocess
import sys
from collections import Counter
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from command_line import ENVIRONMENT, NANO, ROOT, fail, succeed
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from gcvit_mm.benchmark.multi_gpu import Training, activation_bytes, read_training
from gcvit_mm.config import build_model
from gcvit_mm.engine import fsdp
from gcvit_mm.errors import UserError
from gcvit_mm.fsdp_units import fsdp_units

PROCESSES, PASSES = 2, 2
# As a training: the wrappers of trainings, the optimizer of mmengine, and two passes in a step.
# FSDP's collectives are counted where PyTorch dispatches them, DDP's by its hook.
MEASURE = """
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gcvit_mm.fsdp_units import fsdp_units

config, folder, passes = sys.argv[1:]
dist.init_process_group('gloo')
cfg = Config.fromfile(config)
init_default_scope(cfg.default_scope)


def shard(model):
    for module in (*fsdp_units(model), model):
        fully_shard(module)
    return model


def step(wrap):
    torch.manual_seed(0)
    model = wrap(MODELS.build(cfg.model).train())
    cfg.optim_wrapper.accumulative_counts = int(passes)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optim_wrapper.initialize_count_status(model, 0, 100)
    data = demo_mm_inputs(1, [(3, 64, 64)], num_items=[3], num_classes=3, with_mask=True)
    optim_wrapper.zero_grad = lambda **_: None  # mmengine clears gradients behind the step
    for _ in range(int(passes)):
        model.train_step(data, optim_wrapper)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return model, gradients, optim_wrapper.optimizer


def ddp(**options):
    buckets = []

    def hook(state, bucket):
        buckets.append(bucket.buffer())
        return allreduce_hook(None, bucket)

    def wrap(model):
        model = MMDistributedDataParallel(model, broadcast_buffers=False, **options)
        model.register_comm_hook(None, hook)
        return model

    model, gradients, _ = step(wrap)
    storages = [t.untyped_storage() for t in (*buckets, *gradients)]
    held = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
    return dict(reduced=sum(b.nbytes for b in buckets), held=held)


class Collectives(TorchDispatchMode):
    moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        whole = 'gather' in name, 'reduce_scatter' in name  # the first argument, or the second
        if name.startswith('c10d') and any(whole):
            self.moved += sum(t.nbytes for t in tree_leaves(args[whole.index(True)]))
        return function(*args, **kwargs or {})


def fsdp():
    with Collectives() as collectives:
        model, gradients, optimizer = step(shard)
    local = lambda tensors: sum(t.to_local().nbytes for t in tensors if hasattr(t, 'to_local'))
    return dict(moved=collectives.moved, gradients=local(gradients),
                parameters=local(model.parameters()),
                optimizer=local(tree_leaves(dict(optimizer.state))))


found = dict(ddp=ddp(), ddp_views=ddp(gradient_as_bucket_view=True), fsdp=fsdp())
Path(folder, f'{dist.get_rank()}.json').write_text(json.dumps(found))
dist.destroy_process_group()
"""


def nano(**options) -> Config:
    cfg = Config.fromfile(ROOT / NANO)
    cfg.merge_from_dict(options)
    return cfg


@cache
def training_of_nano() -> Training:
    return read_training(nano(**{'optim_wrapper.accumulative_counts': PASSES}))


# --- Units of FSDP -----------------------------------------------------------------------------

VIT = 'vision_transformer/vit-base-p16'
ENCODER = {'DeformableDetrTransformerEncoderLayer': 6}


@pytest.mark.parametrize(
    ('config', 'units'),
    [
        (
            'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
            {'Bottleneck': 16, **ENCODER, 'DeformableDetrTransformerDecoderLayer': 6},
        ),
        (
            'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py',
            {'SwinBlock': 12, **ENCODER, 'Mask2FormerTransformerDecoderLayer': 9},
        ),
        ('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', {'ConvNeXtBlock': 18}),
        (f'mmpretrain::{VIT}_64xb64_in1k.py', {'TransformerEncoderLayer': 12}),
        (NANO, {'Block': 8}),
    ],
    ids=['DINO', 'Mask2Former', 'ConvNeXt', 'ViT', 'GC ViT'],
)
def test_units_are_the_repeated_blocks_of_backbones_and_transformers(config, units):
    model = build_model(get_config(config) if '::' in config else nano(), meta=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert Counter(type(unit).__name__ for unit in fsdp_units(model)) == units


def test_sharding_a_model_without_units_says_what_to_do(monkeypatch):
    monkeypatch.setattr(fsdp, 'get_world_size', lambda: 2)
    with pytest.raises(UserError, match=r'--shard: Linear .*without --shard.*\*Block'):
        fsdp.ShardedRunner.wrap_model(SimpleNamespace(cfg={}), None, nn.Linear(1, 1))


# --- Against a model and an optimizer ----------------------------------------------------------


@pytest.mark.parametrize(
    ('optimizer', 'frozen'),
    [
        (dict(type='AdamW', lr=1e-3, amsgrad=True), 2),
        (dict(type='SGD', lr=1e-3, momentum=0.9), -1),
        (dict(type='SGD', lr=1e-3), -1),
    ],
    ids=['three moments, frozen stages', 'momentum', 'no state'],
)
def test_parameters_gradients_and_state_are_those_of_a_step(optimizer, frozen):
    cfg = nano(**{'model.backbone.frozen_stages': frozen})
    cfg.optim_wrapper.optimizer = dict(weight_decay=0.1, **optimizer)
    before = cfg.pretty_text
    training = read_training(cfg)
    assert cfg.pretty_text == before

    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    state = [x for of in optimizer.state.values() for x in of.values() if torch.is_tensor(x)]

    sizes = sum(p.nbytes for p in model.parameters()), sum(x.nbytes for x in gradients)
    assert training.weights == sizes
    assert training.optimizer_state == sum(x.nbytes for x in state)
    assert training.whole['buffers'] == sum(buffer.nbytes for buffer in model.buffers())
    assert training.parameters == sum(p.numel() for p in model.parameters())
    assert training.trainable == sum(gradient.numel() for gradient in gradients)


def test_an_averaged_model_and_mixed_precision_add_their_copies():
    plain = training_of_nano()
    hook, wrapper = dict(type='EMAHook'), 'GuardedAmpOptimWrapper'
    more = read_training(nano(custom_hooks=[hook], **{'optim_wrapper.type': wrapper}))
    model = MODELS.build(nano().model)
    hook_keeps = MODELS.build(dict(type='ExponentialMovingAverage'), default_args=dict(model=model))
    copies = [*hook_keeps.module.parameters(), *hook_keeps.module.buffers()]
    assert (plain.whole['EMA'], plain.whole['16-bit copies']) == (0, 0)
    assert more.whole['EMA'] == sum(x.nbytes for x in copies)
    assert more.whole['16-bit copies'] == 2 * plain.parameters
    assert read_training(nano(), amp=True).whole['16-bit copies'] == 2 * plain.parameters


# --- Activations -------------------------------------------------------------------------------


def test_activations_of_a_perceptron_are_those_counted_by_hand():
    model = nn.Sequential(nn.Linear(5, 7, device='meta'), nn.ReLU(), nn.Linear(7, 2, device='meta'))
    model.extract_feat = lambda images: (model(images),)
    # In each row when the ReLU's gradient is computed: input, output and its gradient; the ReLU's
    # output and gradient, and the gradient of its input.
    rows = 4 * 3 * 6
    assert activation_bytes(model, 4, (6, 5)) == 4 * rows * (5 + 2 + 2 + 3 * 7)


def backbone(meta=True, **options):
    options = {f'model.backbone.{key}': value for key, value in options.items()}
    model = build_model(nano(**options), meta=meta).backbone.train()
    model.extract_feat = model.forward
    return model


def test_activations_cover_what_is_saved_and_show_checkpoints_and_fused_attention():
    saved = {}

    def pack(x):
        saved[x.untyped_storage()._cdata] = x
        return x

    model = backbone(meta=False, attn_impl='eager')
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(torch.rand(2, 3, 64, 64))
    for x in (*model.parameters(), *model.buffers()):
        saved.pop(x.untyped_storage()._cdata, None)
    kept = sum(x.untyped_storage().nbytes() for x in saved.values())

    eager, fused, checkpointed = (
        activation_bytes(backbone(**options), 2, (64, 64))
        for options in (dict(attn_impl='eager'), {}, dict(with_cp=True))
    )
    assert kept < eager < 1.2 * kept
    assert checkpointed < 0.7 * fused
    assert fused < eager


# --- Against processes -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def measured(tmp_path_factory) -> list[dict]:
    """What each of the processes counted."""
    folder = tmp_path_factory.mktemp('processes')
    (folder / 'measure.py').write_text(MEASURE)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--local-addr=127.0.0.1', f'--nproc-per-node={PROCESSES}', folder / 'measure.py']
    run = subprocess.run(
        [*command, NANO, folder, str(PASSES)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in range(PROCESSES)]


def test_ddp_reduces_gradients_once_a_step_and_copies_them_unless_they_are_views(measured):
    views = nano(model_wrapper_cfg=dict(gradient_as_bucket_view=True))
    for case, training in (('ddp', training_of_nano()), ('ddp_views', read_training(views))):
        memory = training.memory(PROCESSES, sharded=False)
        for found in measured:
            assert found[case]['reduced'] == training.weights.gradients
            assert found[case]['held'] == memory['gradients'] + memory['buckets']


def test_fsdp_keeps_shares_and_sends_what_the_formula_says(measured):
    training = training_of_nano()
    assert training.root.parameters > training.unit.parameters > 0
    memory = training.memory(PROCESSES, sharded=True)
    for found in measured:
        # Parameters are padded to a multiple of the processes, as far as they are sent.
        sent = found['fsdp']['moved'] * (PROCESSES - 1) / PROCESSES
        assert sent == pytest.approx(training.sent(PROCESSES, sharded=True), rel=1e-2)
        for part in ('parameters', 'gradients', 'optimizer'):
            assert found['fsdp'][part] == pytest.approx(memory[part], rel=1e-2)


# --- Errors and the command line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train_dataloader': None}, 'nano_shapes.py has no train_dataloader'),
        ({'optim_wrapper': dict(type='OptimWrapper')}, 'no optim_wrapper.optimizer'),
        ({'optim_wrapper.optimizer': dict(type='Nothing')}, 'there is no optimizer Nothing'),
        ({'optim_wrapper.optimizer': dict(type='LBFGS')}, 'optimizer LBFGS cannot be computed'),
    ],
)
def test_a_config_that_cannot_be_counted_is_an_error_of_the_user(change, message):
    cfg = nano()
    cfg.optim_wrapper.pop('paramwise_cfg')
    for key, value in change.items():
        section, _, name = key.rpartition('.')
        (cfg[section] if section else cfg)[name] = value
    with pytest.raises(UserError, match=message):
        read_training(cfg)


def test_the_table_of_dino_has_the_figures_done_by_hand():
    config = 'configs/dino_gcvit_large_coco.py'
    output = succeed('scaling.py', config, '--gpus', 1, 16)
    rows = {tuple(row[:2]): row[2:] for row in map(str.split, output.splitlines()) if row}
    assert '224,242,342 parameters, 224,242,342 trainable, AdamW' in output
    # 4 bytes each: 896.97 MB; two moments; 2 x 15/16 of the gradients are sent.
    row = rows['16', 'DDP']
    assert [*row[:5], row[-1]] == ['32', '897.0', '897.0', '1793.9', '897.0', '1681.8']
    # A single GPU sends nothing, and has no buckets.
    assert rows['1', 'DDP'] == rows['1', 'FSDP'] and rows['1', 'DDP'][-1] == '0.0'
    assert rows['1', 'DDP'][4] == '0.0'
    assert f'{config} --mode training --batch 2 --size HxW' in output


def test_numbers_of_gpus_are_checked_first():
    assert '--gpus -1: it must be above 0' in fail('scaling.py', NANO, '--gpus', 8, -1)

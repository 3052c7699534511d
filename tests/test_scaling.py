"""What the figures of ``tools/scaling.py`` are: those of real models, optimizers and processes."""

import json
import runpy
import socket
import subprocess
import sys
from functools import cache

import pytest
import torch
from command_line import ENVIRONMENT, NANO, ROOT, fail, succeed
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from gcvit_mm.benchmark.multi_gpu import (
    Links,
    Traffic,
    Training,
    ddp_memory,
    ddp_traffic,
    efficiency,
    fsdp_memory,
    fsdp_traffic,
    read_training,
)
from gcvit_mm.errors import UserError

PROCESSES = 2
# As a training: the wrappers and the optimizer of mmengine, and two batches a step of it. FSDP's
# collectives are counted where PyTorch dispatches them, DDP's by its hook.
MEASURE = """
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, MMFullyShardedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gcvit_mm.models.gcvit import Block

config, folder, rank, processes = sys.argv[1:]
store = Path(folder, 'store').as_uri()
dist.init_process_group('gloo', init_method=store, rank=int(rank), world_size=int(processes))
cfg = Config.fromfile(config)
init_default_scope(cfg.default_scope)


def build(wrapper, accumulation=1, **options):
    torch.manual_seed(0)
    model = wrapper(MODELS.build(cfg.model).train(), **options)
    cfg.optim_wrapper.accumulative_counts = accumulation
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optim_wrapper.initialize_count_status(model, 0, 100)
    data = demo_mm_inputs(1, [(3, 64, 64)], num_items=[3], num_classes=3, with_mask=True)
    return model, optim_wrapper, lambda: model.train_step(data, optim_wrapper)


def storages(tensors):
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def of_optimizer(optim_wrapper):
    return sum(t.nbytes for t in tree_leaves(dict(optim_wrapper.optimizer.state))
               if isinstance(t, torch.Tensor))


def steps(model, optim_wrapper, step, count):
    found = []
    # mmengine clears the gradients behind the step of the optimizer.
    optim_wrapper.zero_grad = lambda **_: found.extend(
        p.grad for p in model.parameters() if p.grad is not None)
    for _ in range(count):
        step()
    del optim_wrapper.zero_grad
    optim_wrapper.zero_grad()
    return found


def ddp(accumulation, **options):
    model, optim_wrapper, step = build(
        MMDistributedDataParallel, accumulation, broadcast_buffers=False, **options)
    buckets = []

    def hook(state, bucket):
        buckets.append(bucket.buffer())
        return allreduce_hook(None, bucket)

    model.register_comm_hook(None, hook)
    gradients = steps(model, optim_wrapper, step, accumulation)
    held = storages([*buckets, *gradients])
    return dict(reduced=sum(b.nbytes for b in buckets), gradients_and_buckets=held)


class Collectives(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.gathered = self.scattered = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if name.startswith('c10d') and 'gather' in name:
            self.gathered += sum(t.nbytes for t in tree_leaves(args[0]))
        elif name.startswith('c10d') and 'reduce_scatter' in name:
            self.scattered += sum(t.nbytes for t in tree_leaves(args[1]))
        return function(*args, **kwargs or {})


def fsdp(accumulation):
    model, optim_wrapper, step = build(
        MMFullyShardedDataParallel, accumulation, device_id=torch.device('cpu'),
        auto_wrap_policy=ModuleWrapPolicy({Block}))
    with Collectives() as collectives:
        gradients = steps(model, optim_wrapper, step, accumulation)
    return dict(gathered=collectives.gathered, scattered=collectives.scattered,
                gradients=storages(gradients),
                parameters=sum(p.nbytes for p in model.parameters()),
                optimizer=of_optimizer(optim_wrapper))


found = dict(
    ddp=ddp(1),
    ddp_accumulating=ddp(2),
    ddp_views=ddp(1, gradient_as_bucket_view=True),
    fsdp=fsdp(1),
    fsdp_accumulating=fsdp(2),
)
Path(folder, f'{rank}.json').write_text(json.dumps(found))
dist.destroy_process_group()
"""


def nano(**options) -> Config:
    cfg = Config.fromfile(ROOT / NANO)
    cfg.merge_from_dict(options)
    return cfg


@cache
def training_of_nano() -> Training:
    return read_training(nano())


# --- Against a model and an optimizer ----------------------------------------------------------


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'optim_wrapper.optimizer': dict(type='AdamW', lr=1e-3, weight_decay=0.1, amsgrad=True)},
        {'optim_wrapper.optimizer': dict(type='SGD', lr=1e-3, weight_decay=0.1, momentum=0.9)},
        {'optim_wrapper.optimizer': dict(type='SGD', lr=1e-3, weight_decay=0.1)},
        {'model.backbone.frozen_stages': 2},
    ],
    ids=['as it is', 'three moments', 'momentum', 'no state', 'frozen stages'],
)
def test_parameters_gradients_and_state_are_those_of_a_step(options):
    cfg = nano()
    cfg.optim_wrapper.optimizer = options.pop(
        'optim_wrapper.optimizer', dict(cfg.optim_wrapper.optimizer)
    )
    cfg.merge_from_dict(options)
    training = read_training(cfg)

    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    state = [x for of in optimizer.state.values() for x in of.values() if torch.is_tensor(x)]

    assert training.weights.parameters == sum(p.nbytes for p in model.parameters())
    assert training.weights.gradients == sum(gradient.nbytes for gradient in gradients)
    assert training.optimizer_state == sum(x.nbytes for x in state)
    assert training.buffers == sum(buffer.nbytes for buffer in model.buffers())
    assert training.parameters == sum(p.numel() for p in model.parameters())
    assert training.trainable == sum(gradient.numel() for gradient in gradients)


def test_an_averaged_model_is_a_copy_with_buffers():
    plain = training_of_nano()
    averaged = read_training(nano(custom_hooks=[dict(type='EMAHook')]))
    model = MODELS.build(nano().model)
    hook_keeps = MODELS.build(dict(type='ExponentialMovingAverage'), default_args=dict(model=model))
    tensors = [*hook_keeps.module.parameters(), *hook_keeps.module.buffers()]
    assert plain.ema == 0
    assert averaged.ema == sum(tensor.nbytes for tensor in tensors)
    assert ddp_memory(averaged, 8).total - ddp_memory(plain, 8).total == averaged.ema


def test_mixed_precision_is_asked_for_or_configured():
    copies = 2 * training_of_nano().parameters
    assert training_of_nano().half == 0
    assert read_training(nano(), amp=True).half == copies
    configured = nano(**{'optim_wrapper.type': 'GuardedAmpOptimWrapper'})
    assert read_training(configured).half == copies


def test_a_model_that_looks_at_values_is_built_all_the_same():
    @MODELS.register_module(force=True)
    class LooksAtValues(torch.nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.sum = self.weight.sum().item()

    cfg = nano()
    cfg.model, cfg.optim_wrapper.paramwise_cfg = dict(type='mmengine.LooksAtValues'), None
    assert read_training(cfg).weights.parameters == 4 * (3 * 2 + 2)


def test_reading_leaves_the_config_as_it_is():
    cfg = nano()
    before = cfg.pretty_text
    read_training(cfg)
    assert cfg.pretty_text == before


# --- Against processes -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def measured(tmp_path_factory) -> list[dict]:
    """What each of the processes counted."""
    folder = tmp_path_factory.mktemp('processes')
    # Gloo otherwise looks up the machine's name, which may wait for a network.
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith('lo'))
    (folder / 'measure.py').write_text(MEASURE)
    processes = [
        subprocess.Popen(
            [sys.executable, folder / 'measure.py', NANO, folder, str(rank), str(PROCESSES)],
            cwd=ROOT,
            env={**ENVIRONMENT, 'GLOO_SOCKET_IFNAME': loopback},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in range(PROCESSES)]


@pytest.mark.parametrize('case', ['ddp', 'ddp_accumulating'])
def test_ddp_reduces_the_gradients_once_a_step(measured, case):
    training = training_of_nano()
    for found in measured:
        assert found[case]['reduced'] == training.weights.gradients


def test_ddp_keeps_a_second_copy_of_the_gradients_unless_they_are_views(measured):
    views = nano(model_wrapper_cfg=dict(gradient_as_bucket_view=True))
    for case, cfg in (('ddp', nano()), ('ddp_views', views)):
        memory = ddp_memory(read_training(cfg), PROCESSES)
        for found in measured:
            assert found[case]['gradients_and_buckets'] == memory.gradients + memory.buckets


@pytest.mark.parametrize(('case', 'passes'), [('fsdp', 1), ('fsdp_accumulating', 2)])
def test_fsdp_gathers_and_scatters_what_the_formula_says(measured, case, passes):
    training = read_training(nano(**{'optim_wrapper.accumulative_counts': passes}))
    assert training.root.parameters > training.unit.parameters > 0
    sent = fsdp_traffic(training, PROCESSES).total
    for found in measured:
        moved = found[case]['gathered'] + found[case]['scattered']
        # Units are padded to a multiple of the processes.
        assert moved * (PROCESSES - 1) / PROCESSES == pytest.approx(sent, rel=1e-5)


@pytest.mark.parametrize('case', ['fsdp', 'fsdp_accumulating'])
def test_fsdp_keeps_a_share_of_parameters_gradients_and_state(measured, case):
    memory = fsdp_memory(training_of_nano(), PROCESSES)
    for found in measured:
        # Units are padded; a process counts the steps of the tensors that it has a part of.
        assert found[case]['parameters'] == pytest.approx(memory.parameters, rel=1e-4)
        assert found[case]['gradients'] == pytest.approx(memory.gradients, rel=1e-4)
        assert found[case]['optimizer'] == pytest.approx(memory.optimizer, rel=1e-3)


# --- The arithmetic ----------------------------------------------------------------------------


@pytest.mark.parametrize('gpus', [2, 3, 8])
def test_a_ring_that_adds_up_in_every_process_sends_what_the_formula_says(gpus):
    chunk = 7
    held = [[10**rank] * gpus for rank in range(gpus)]  # of each process: a number for each chunk
    sent = [0] * gpus
    for step in range(2 * (gpus - 1)):
        adding = step < gpus - 1
        for rank, i in [(rank, (rank - step) % gpus) for rank in range(gpus)]:
            to = held[(rank + 1) % gpus]
            to[i] = to[i] * adding + held[rank][i]
            sent[rank] += chunk
    assert held == [[sum(10**rank for rank in range(gpus))] * gpus] * gpus

    training = training_of_nano()
    total = ddp_traffic(training, gpus).total
    assert total / training.weights.gradients == pytest.approx(sent[0] / (gpus * chunk))


def test_fsdp_gathers_twice_and_scatters_once_where_nothing_stays_gathered():
    training = read_training(nano(), units=['MaskRCNN', 'GCViT', 'FPN', 'RPNHead', '*RoIHead'])
    assert training.root.parameters == 0
    sent = fsdp_traffic(training, 8).total
    assert sent == pytest.approx(3 * 7 / 8 * training.weights.parameters)


def test_a_single_gpu_sends_nothing_and_has_no_buckets():
    training = training_of_nano()
    assert ddp_traffic(training, 1).total == fsdp_traffic(training, 1).total == 0
    assert ddp_memory(training, 1) == fsdp_memory(training, 1)
    assert ddp_memory(training, 1).buckets == 0


def test_images_of_a_step_are_those_of_all_gpus_and_passes():
    training = read_training(nano(**{'optim_wrapper.accumulative_counts': 3}))
    assert training.images(4) == 8 * 3 * 4


@pytest.mark.parametrize(
    ('gpus', 'nodes', 'slowest'), [(1, 1, 3600), (8, 1, 3600), (9, 2, 200), (64, 8, 200)]
)
def test_the_network_counts_from_the_second_node_on(gpus, nodes, slowest):
    links = Links(within=3600, between=200, gpus_per_node=8)
    assert (links.nodes(gpus), links.slowest(gpus)) == (nodes, slowest)


def test_a_slow_link_within_a_node_is_slow_between_nodes_too():
    assert Links(within=100, between=200, gpus_per_node=8).slowest(16) == 100


@pytest.mark.parametrize(
    ('traffic', 'plain', 'overlapped'),
    [
        # 1 Gbit/s: 1.25e8 bytes take a second; a pass takes 3 s, 2 s of them backward.
        (Traffic(0, 0, 1.25e8, 1), 3 / 4, 1),
        (Traffic(0, 0, 3.75e8, 1), 3 / 6, 3 / 4),
        (Traffic(0, 0, 3.75e8, 2), 6 / 9, 6 / 7),
        (Traffic(1.25e8, 1.25e8, 1.25e8, 1), 3 / 6, 3 / 4),
        (Traffic(1.25e8, 3.75e8, 1.25e8, 2), 6 / 15, 6 / 11),
    ],
)
def test_efficiency_counts_what_is_not_hidden_behind_backward_passes(traffic, plain, overlapped):
    links = Links(within=1, between=1, gpus_per_node=8)
    for expected, overlap in ((plain, False), (overlapped, True)):
        found = efficiency(traffic, links, 8, pass_seconds=3, overlap=overlap)
        assert found == pytest.approx(expected)


# --- Errors and the command line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train_dataloader': None}, 'no train_dataloader: it does not train'),
        ({'optim_wrapper': dict(type='OptimWrapper')}, 'no optim_wrapper.optimizer'),
        ({'optim_wrapper.optimizer': dict(type='Nothing')}, 'there is no optimizer Nothing'),
        ({'optim_wrapper.optimizer': dict(type='LBFGS')}, 'optimizer LBFGS .* cannot be counted'),
        ({'model': dict(type='Nothing')}, 'the model of the config cannot be built: KeyError'),
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
    output = succeed(
        'scaling.py',
        'configs/dino_gcvit_large_coco.py',
        *('--gpus', 8, 16, '--intra-link-gbps', 3600, '--node-link-gbps', 200, '--step-ms', 300),
    )
    rows = [line.split() for line in output.splitlines()]
    memory, traffic = ([row for row in rows if row[:2] == ['16', 'DDP']][i] for i in (0, 1))
    assert '224,242,342 parameters, 224,242,342 of them trained by AdamW' in output
    # 4 bytes each: 896.97 MB; two moments; 2 x 15/16 of the gradients, at 25 MB/ms; 300 ms.
    assert memory[2:7] == ['32', '897.0', '897.0', '1793.9', '897.0']
    assert traffic[2:] == ['2', '1681.8', '200', '67.3', '0.82', '1.00']
    assert 'configs/dino_gcvit_large_coco.py --mode training --batch 2 --size HxW' in output


def test_a_missing_speed_is_one_line():
    message = fail('scaling.py', NANO, '--intra-link-gbps', 3600)
    assert 'give --link-gbps, or both --intra-link-gbps and --node-link-gbps' in message


@pytest.mark.parametrize('option', ['--link-gbps=0', '--gpus=-1', '--step-ms=nan'])
def test_numbers_that_are_not_above_0_are_refused(option, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['scaling.py', NANO, '--link-gbps=1', option])
    with pytest.raises(UserError, match=f'{option.partition("=")[0]} .*: it must be above 0'):
        runpy.run_path(str(ROOT / 'tools/scaling.py'))['main']()

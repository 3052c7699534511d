"""What is decided for GPUs, without one: types, gloo, loss scales, memory that runs out."""

import subprocess
import sys

import pytest
import torch
from command_line import ENVIRONMENT, ROOT
from torch import nn

from gcvit_mm.benchmark import Subject, build_subject, count_work, measure
from gcvit_mm.benchmark.table import table
from gcvit_mm.engine import GuardedAmpOptimWrapper
from gcvit_mm.models.precision import half_precision


def test_tf32_is_allowed_on_gpus_alone():
    # Some CPUs have reduced types too.
    code = (
        'import torch; from gcvit_mm.models.precision import use_tf32; use_tf32(); '
        'b = torch.backends; print(b.cuda.matmul.fp32_precision, b.mkldnn.matmul.fp32_precision)'
    )
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    on_gpu, on_cpu = done.stdout.split()
    assert on_gpu == 'tf32' and on_cpu in ('none', 'ieee')


@pytest.mark.parametrize(
    ('capability', 'dtype'),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_bfloat16_is_for_gpus_that_have_it(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: capability)
    assert half_precision() == dtype


SCALE = dict(scale=8.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=9)


@pytest.mark.parametrize('saved', [{}, {**SCALE, '_growth_tracker': 3}])
def test_a_training_in_float16_resumes_one_in_bfloat16(saved, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', bool)
    wrapper = object.__new__(GuardedAmpOptimWrapper)  # mmengine refuses CPUs
    wrapper.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    wrapper.loss_scaler = torch.amp.GradScaler('cpu')
    state = {**wrapper.optimizer.state_dict(), 'loss_scaler': saved}
    state['param_groups'][0]['lr'] = 0.5
    wrapper.load_state_dict(state)
    assert wrapper.optimizer.param_groups[0]['lr'] == 0.5
    assert wrapper.loss_scaler.get_scale() == saved.get('scale', 2.0**16)
    assert state['loss_scaler'] is saved  # the checkpoint is as it was


GLOO = """
import logging
from types import SimpleNamespace
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from gcvit_mm.engine import PreemptionHook

dist.init_process_group('fake', rank=0, world_size=1, store=FakeStore())
runner = SimpleNamespace(
    train_loop=SimpleNamespace(), val_loop=None, distributed=True, logger=logging.getLogger()
)
hook = PreemptionHook()
hook.before_train(runner)
hook.received = 15
print('group', hook.group, hook._received_by_any(runner))
"""


def test_training_goes_on_where_gloo_finds_no_network():
    environment = {**ENVIRONMENT, 'GLOO_SOCKET_IFNAME': 'nothing0'}
    command = [sys.executable, '-c', GLOO]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert 'group None 15' in run.stdout, run.stderr
    assert 'GLOO_SOCKET_IFNAME' in run.stderr


def test_a_model_that_runs_out_of_memory_leaves_the_others_measured():
    calls = []

    def step() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    bad, good = Subject('bad', nn.Identity(), step), Subject('good', nn.Identity(), lambda: None)
    results = measure([bad, good], torch.device('cpu'), repeat=4)
    assert results[0] is None
    assert len(results[1].seconds) == 4
    row = dict(model='good', seconds=1, quartiles=[1, 1], images_per_second=1, peak_bytes=1)
    row |= dict(flops=1, bytes=1, times_floor=1, time_over={'good': 1})
    titles, first, second = table({'models': [{'model': 'bad'}, row]})
    assert len(titles) == len(first) == len(second)
    assert 'out of memory' in first


def test_work_is_counted_without_computing():
    subject = build_subject(
        'gcvit_xxtiny:attn_impl=eager', batch=1, size=(64, 64), training=False,
        dtype=torch.float32, device=torch.device('cpu'), counted=True,
    )  # fmt: skip
    work = count_work(subject.step)
    with torch.no_grad():
        subject.model.stem.conv.weight.fill_(torch.nan)
    assert count_work(subject.step, fake=True) == work


DEFORMABLE = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import gcvit_mm
from gcvit_mm.compat import mmcv_ops
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as F
import mmcv.ops.multi_scale_deform_attn as module
torch.manual_seed(0)
shapes = torch.tensor([[4, 320], [2, 160]])
starts = torch.tensor([0, 1280])
value = torch.randn(1, 1600, 2, 8)
locations = torch.rand(1, 5, 2, 2, 3, 2)
weights = torch.rand(1, 5, 2, 2, 3)
inputs = [x.requires_grad_() for x in (value, locations, weights)]
exact = F.apply(value.bfloat16().float(), shapes, starts, locations, weights, 64)
half = F.apply(value.bfloat16(), shapes, starts, locations, weights, 64)
assert half.dtype == torch.bfloat16
assert torch.equal(half, exact.bfloat16())
half.float().sum().backward()
assert all(x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 for x in inputs)

class NoItem(torch.utils._python_dispatch.TorchDispatchMode):
    waits = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waits += 'local_scalar' in func._schema.name
        return func(*args, **(kwargs or {}))
with NoItem() as mode, torch.no_grad():
    F.apply(value, shapes, starts, locations, weights, 64)
print('waits', mode.waits)
"""


def test_deformable_attention_samples_in_float32_and_reads_shapes_once():
    command = [sys.executable, '-c', DEFORMABLE]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert 'waits 0' in run.stdout, run.stderr

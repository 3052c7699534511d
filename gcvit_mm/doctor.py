"""The checks of the environment that ``tools/doctor.py`` runs."""

import contextlib
import importlib
import os
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import Distribution, distribution, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

# Only the standard library is imported here; each check gets the modules that it needs.
from .compat.environment import ONEDL, OPENMMLAB, installed, loader_cves, problems
from .compat.packages import PACKAGES

GIB = 2**30
PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent
# A checkout may have metadata, but only an installation has the file RECORD.
INSTALLED = any(known.read_text('RECORD') for known in Distribution.discover(name='gcvit_mm'))
OK, ABSENT, WARNING, ERROR = 'ok', 'absent', 'warning', 'error'
OPENCV = ('opencv-python', 'opencv-contrib-python')
# Names on PyPI of the modules that have another name there.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    'mmcv': ('mmcv-lite', 'mmcv', 'onedl-mmcv'),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    **{module: package.distributions for module, package in PACKAGES.items()},
    'cv2': (*OPENCV, *(f'{name}-headless' for name in OPENCV)),
    'PIL': ('pillow',),
    'yaml': ('pyyaml',),
    'faster_coco_eval': ('faster-coco-eval',),
}
OPTIONAL = {module: package.task for module, package in PACKAGES.items()}
OPTIONAL |= {'triton': "attn_impl='triton'", 'huggingface_hub': 'fetching published weights'}
PARTS = {module: [f'{module}.models', f'{module}.datasets'] for module in PACKAGES}
PARTS |= {'pycocotools': ['pycocotools.mask']}
MODELS = ('torch', 'gcvit_mm.models')
COLLECT_ENV = ('torch', 'torch.utils.collect_env')
OPERATIONS = (*MODELS, 'mmcv.ops', 'torchvision')
MORE_SHM = """docker run --shm-size=8g ...
or, in each training: --cfg-options train_dataloader.num_workers=0 \
    train_dataloader.persistent_workers=False"""
Check = tuple[str, tuple[str, ...], Callable]
"""A title, the modules that the check needs, and a function that takes them."""


class Finding(NamedTuple):
    """A line of the report; the problem is a sentence, and the fix has a command on each line."""

    found: str
    state: str = OK
    problem: str = ''
    fix: str = ''
    name: str = ''  # by default the title of the check


class Skipped(Exception):
    """A check is skipped because something that it needs is broken, as another check reports."""


def need(*modules: str) -> list[Any]:
    imported = []
    for module in modules:
        if module in problems():
            raise Skipped(module)
        try:
            imported.append(importlib.import_module(module))
        except (Exception, SystemExit):  # the module's own check reports it
            raise Skipped(module) from None
    return imported


def one_line(error: BaseException) -> str:
    return textwrap.shorten(f'{type(error).__name__}: {error}', 300, placeholder=' ...')


def pins_of(module: str) -> list[str]:
    return installed(DISTRIBUTIONS.get(module, (module,)))


def version_of(name: str) -> str:
    return ''.join(pin.partition('==')[2] for pin in installed((name,)))


def processor() -> str:
    model = re.search(r'model name\s*: (.*)', read('/proc/cpuinfo'))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{usable} cores, {model[1] if model else platform.machine()}'


def memory() -> Finding:
    sizes = dict(re.findall(r'(\w+): +(\d+) kB', read('/proc/meminfo')))
    if not sizes:
        return Finding('unknown', ABSENT)
    total, free = (gib(int(sizes[key]) * 1024) for key in ('MemTotal', 'MemAvailable'))
    limit = read('/sys/fs/cgroup/memory.max').strip()
    limited = f', limited to {gib(int(limit))}' if limit.isdigit() else ''
    return Finding(f'{total}, {free} free{limited}')


def space(path: str, minimum: int, purpose: str, fix: str) -> Finding:
    if not os.path.isdir(path):
        return Finding(f'no {path}', ABSENT)
    size = shutil.disk_usage(path).free
    free = f'{gib(size)} free in {os.path.abspath(path)}'
    problem = f'There are only {free}, which may be too little for {purpose}.'
    return Finding(free) if size >= minimum else Finding(free, WARNING, problem, fix)


def read(path: str) -> str:
    return Path(path).read_text() if os.path.isfile(path) else ''


def gib(size: float) -> str:
    return f'{size / GIB:.1f} GiB'


def torch_itself() -> Finding:
    version = version_of('torch')
    if 'torch' in problems():
        return Finding(version or 'not installed', ERROR, *problems()['torch'])
    cuda, cves = importlib.import_module('torch').version.cuda, loader_cves(version)
    build = f'{version}, CUDA {cuda}' if cuda else f'{version}, without CUDA'
    problem = f'torch {version} has known vulnerabilities in torch.load: {", ".join(cves)}.'
    fix = 'load only .pth files that you trust, or install torch 2.10 or later'
    return Finding(build, WARNING, problem, fix) if cves else Finding(build)


def driver(_: Any, env: Any) -> Finding:
    gpus = '; '.join((env.get_gpu_info(env.run) or '').splitlines())
    if gpus:
        return Finding(f'{gpus}, driver {env.get_nvidia_driver_version(env.run)}')
    if shutil.which('nvidia-smi') is None:
        return Finding('none', ABSENT)
    problem = f'The NVIDIA driver does not respond: {" ".join(env.run("nvidia-smi")[1:])}'
    return Finding('(broken)', WARNING, problem, 'restart the machine, or reinstall the driver')


def arrays(torch: Any) -> str:
    torch.from_numpy(torch.zeros(2).numpy())
    return version_of('numpy')


def gpus(torch: Any, env: Any) -> Iterator[Finding]:
    for device, (gpu, failure) in (known := accelerators(torch)).items():
        broken = ('(broken)', ERROR, f'{gpu} does not work: {failure}')
        name = device.replace('cuda:', 'GPU ').replace('mps', 'GPU')
        yield Finding(*(broken if failure else (gpu,)))._replace(name=name)
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1')
    if not known and (hidden or not env.get_gpu_info(env.run)):
        yield Finding('none: everything runs on the CPU', ABSENT)
    elif not known:
        problem = f'torch {torch.__version__} does not find the GPU of the driver'
        yield Finding('(broken)', ERROR, f'{problem}: {failure_of(torch, "cuda")}')


def accelerators(torch: Any) -> dict[str, tuple[str, str]]:
    """Describe the GPUs that torch finds, by device, each with its failure or ''."""
    mps = torch.backends.mps.is_available()
    known = {'mps': f'{platform.machine()}, Metal (MPS)'} if mps else {}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability = f'capability {gpu.major}.{gpu.minor}'
        known[f'cuda:{index}'] = f'{gpu.name}, {gib(gpu.total_memory)}, {capability}'
    return {device: (gpu, failure_of(torch, device)) for device, gpu in known.items()}


def failure_of(torch: Any, device: str) -> str:
    try:
        ones = torch.ones(64, 64, device=device)
        return '' if (ones @ ones).sum().item() == 64**3 else 'a matrix product is wrong'
    except Exception as error:
        return one_line(error)


def devices(torch: Any) -> list[str]:
    """List the types of devices that work; the check of GPUs reports the others."""
    working = [device for device, (_, failure) in accelerators(torch).items() if not failure]
    return ['cpu', *dict.fromkeys(device.partition(':')[0] for device in working)]


def torchvision(torch: Any) -> str:
    importlib.import_module('torchvision').ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
    return version_of('torchvision')


def fused_adamw(torch: Any) -> Finding:
    """Check the optimizer of the ready configs."""
    device = devices(torch)[-1]
    parameter = torch.nn.Parameter(torch.ones(4, device=device))
    try:
        parameter.sum().backward()
        torch.optim.AdamW([parameter], fused=True).step()
        return Finding(f'runs on {device}')
    except RuntimeError:
        problem = f'torch {torch.__version__} has no fused AdamW on {device}.'
        fix = '--cfg-options optim_wrapper.optimizer.fused=False    in each training'
        return Finding(f'not on {device}', WARNING, problem, fix)


def sdpa_kernels(torch: Any, attention: Any) -> str:
    """List PyTorch's attention kernels that support a bias, which attn_impl='sdpa' needs."""
    results = []
    for device in (name for name in devices(torch) if name != 'mps'):  # MPS has only one kernel
        dtype = torch.float16 if device == 'cuda' else torch.float32
        q, bias = (torch.randn(1, 2, 16, n, device=device, dtype=dtype) for n in (32, 16))
        kernels = []
        for name in ('FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION', 'MATH'):
            # Kernels that this torch or device lacks raise an error.
            with contextlib.suppress(RuntimeError, AssertionError):
                with attention.sdpa_kernel(getattr(attention.SDPBackend, name, None)):
                    torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=bias)
                kernels.append(name.lower().partition('_')[0])
        results.append(f'{", ".join(kernels)} on {device}')
    return f'with a bias: {"; ".join(results)}'


def families() -> Finding:
    """Check which of the two families of mm packages is installed."""
    both = {"OpenMMLab's": OPENMMLAB, 'onedl': ONEDL}
    names = ' and '.join(name for name, members in both.items() if installed(members))
    problem = problems().get('mm')
    return Finding(names or 'none', ERROR, *problem) if problem else Finding(names)


def opencv() -> Finding:
    finding = library('cv2')
    if finding.state == OK:
        cv2, numpy = need('cv2', 'numpy')
        cv2.resize(numpy.zeros((4, 4, 3), 'uint8'), (2, 2))
        kind = 'headless' if getattr(cv2.version, 'headless', False) else 'with GUI'
        return Finding(f'{cv2.__version__}, {kind}, from {", ".join(pins_of("cv2"))}')
    return finding


def coco_evaluation(module: str, *distributions: str) -> Finding:
    """Check the COCO API of mmdet: faster_coco_eval for onedl, pycocotools for OpenMMLab."""
    if not installed(distributions):
        raise Skipped(distributions[0])
    return library(module)


def library(module: str, *needed: str) -> Finding:
    """Check that a package is installed and can be imported."""
    exists = find_spec(module) is not None
    if not exists and module in OPTIONAL:
        return Finding(f'not installed, optional for {OPTIONAL[module]}', ABSENT)
    if not exists and find_spec('mmengine') is None and module != 'safetensors':
        return Finding('comes with the mm packages', ABSENT)
    need(*(needed if exists else ()))
    for name in (module, *PARTS.get(module, [])):
        importlib.import_module(name)
    return Finding(' '.join(pins_of(module)))


def framework(module: str, *needed: str) -> Finding:
    """Check an mm package, whose files are gone if the other family was uninstalled later."""
    if 'mm' in problems():
        raise Skipped('one family of mm packages')
    for pin in pins_of(module):
        known = distribution(pin.partition('==')[0])
        # From Python 3.12 on, ``Distribution.files`` omits missing files.
        files = re.findall(rf'^({module}/.*?\.py),', known.read_text('RECORD') or '', re.M)
        gone = [file for file in files if not Path(str(known.locate_file(file))).exists()]
        if gone:
            problem = f'{len(gone)} of {len(files)} files of {pin} are gone, {gone[0]} for example.'
            fix = f'pip install --force-reinstall --no-deps {pin}'
            return Finding(f'{pin} (files gone)', ERROR, problem, fix)
    return library(module, *needed)


def extras() -> Iterator[Finding]:
    """Check the package's optional dependencies, which its metadata lists."""
    if not INSTALLED:
        raise Skipped('gcvit_mm installed')
    line = re.compile(r'([\w-]+)[^;]*;.*extra == .(?!mm|test)(\w+)')
    optional = [match.groups() for match in map(line.match, requires('gcvit_mm') or []) if match]
    for extra in dict.fromkeys(extra for _, extra in optional):
        names = tuple(name for name, of in optional if of == extra)
        pins = installed(names)
        missing = ', '.join(sorted({*names} - {pin.split('==')[0] for pin in pins}))
        fix = f"pip install 'gcvit_mm[{extra}]'"
        absent = Finding(f'without {missing}', ABSENT, '', fix, extra)
        yield absent if missing else Finding(' '.join(pins), name=extra)


def package() -> Iterator[Finding]:
    if not INSTALLED:
        extra = '' if installed(OPENMMLAB + ONEDL) else '[mm]'
        problem = 'gcvit_mm is not installed for this Python.'
        yield Finding(f'only in {PACKAGE}', ERROR, problem, f"pip install -e '{ROOT}{extra}'")
    if problems():
        raise Skipped('torch and one family of mm packages')
    need('torch', 'cv2', 'mmengine', 'mmcv', 'safetensors', 'tqdm')
    for part in ('engine.setup', 'register'):
        importlib.import_module(f'gcvit_mm.{part}')
    if INSTALLED:
        yield Finding(f'{version_of("gcvit_mm")}, {PACKAGE}')


def operations(*modules: Any) -> str:
    importlib.import_module('mmcv.ops')
    return modules[-1].implementation().partition(': ')[2].partition(';')[0]


def on_each_device(run: Callable[[Any, Any, str], bool]) -> Callable:
    """Turn a test of the result on a device into a check of all devices."""

    def check(torch: Any, _: Any, ops: Any, *__: Any) -> str:
        for device in devices(torch):
            if not run(torch, ops, device):
                raise RuntimeError(f'its result is wrong on {device}')
        return f'runs on {", ".join(devices(torch))}'

    return check


@on_each_device
def nms(torch: Any, ops: Any, device: str) -> bool:
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 28, 28]], device=device)
    _, kept = ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7], device=device), 0.5)
    return kept.tolist() == [1, 2]


@on_each_device
def roi_align(torch: Any, ops: Any, device: str) -> bool:
    features = torch.ones(1, 2, 8, 8, device=device, requires_grad=True)
    box = torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    out = ops.roi_align(features, box, (2, 2), 1.0, 0, 'avg', True)
    out.sum().backward()
    return out.shape == (1, 2, 2, 2) and abs(features.grad.sum().item() - 8) < 1e-4


@on_each_device
def deformable_attention(torch: Any, ops: Any, device: str) -> bool:
    layer = ops.MultiScaleDeformableAttention(32, num_heads=2, num_levels=1, num_points=2)
    tokens = torch.ones(16, 1, 32, device=device, requires_grad=True)
    out = layer.to(device)(
        tokens,
        reference_points=torch.full((1, 16, 1, 2), 0.5, device=device),
        spatial_shapes=torch.tensor([[4, 4]], device=device),
        level_start_index=torch.tensor([0], device=device),
    )
    out.sum().backward()
    return out.shape == tokens.shape and bool(tokens.grad.isfinite().all())


def attention(impl: str, torch: Any, models: Any) -> Finding:
    """Compare an implementation of the backbone's attention with the reference, eager."""

    def run(impl: str, device: str) -> tuple[Any, Any]:
        torch.manual_seed(0)
        layer = models.attention.WindowAttention(64, 2, 4, False, impl).to(device)
        x = torch.randn(2, 9, 10, 64).to(device).requires_grad_()  # needs padding
        out = layer(x, models.windows.relative_position_index(4).to(device), None)
        out.square().sum().backward()
        return out.detach(), x.grad

    ran = []
    for device in (name for name in devices(torch) if impl != 'triton' or name == 'cuda'):
        pairs = zip(run('eager', device), run(impl, device), strict=True)
        error = max(((b - a).abs().max() / a.abs().max()).item() for a, b in pairs)
        if not error < 0.01:
            raise RuntimeError(f'it differs from eager by {error:.2g} on {device}')
        ran.append(device if impl == 'eager' else f'{device} (differs from eager by {error:.0e})')
    return Finding(f'runs on {", ".join(ran)}') if ran else Finding('needs a CUDA GPU', ABSENT)


def zoo() -> Finding:
    configs = [*PACKAGE.glob('.mim/configs/*.py'), *ROOT.glob('configs/*.py')]
    if configs:
        return Finding(f'{len(configs)} configs in {configs[0].parent}')
    problem = f'The package in {ROOT} has no configs.'
    return Finding('none', ERROR, problem, 'pip install --force-reinstall --no-deps gcvit_mm')


def checkpoints(_: Any, hub: Any) -> str:
    folder, published = hub.default_folder(), hub.published().values()
    count = sum((folder / weights.file).is_file() for weights in published)
    return f'{count} of {len(published)} published weights in {folder}'


def data(_: Any, config: Any, zoo: Any) -> Iterator[Finding]:
    """Check for the data of the ready configs, by one config of each data set."""
    for dataset, name in {name.rpartition('_')[2]: name for name in zoo.names()}.items():
        loader = config.read_config(name, import_modules=False).val_dataloader
        folder = os.path.normpath(config.datasets_of(loader)[0].data_root)
        found, state = (folder, OK) if os.path.isdir(folder) else (f'missing: {folder}', ABSENT)
        yield Finding(found, state, name=f'data: {dataset}')


def libraries(*modules: str) -> Iterator[Check]:
    return ((module, (), partial(library, module)) for module in modules)


SECTIONS: dict[str, list[Check]] = {
    'Machine': [
        ('Python', (), lambda: f'{platform.python_version()}, {sys.executable}'),
        ('system', (), platform.platform),
        ('CPU', (), processor),
        ('memory', (), memory),
        ('shared memory', (), partial(space, '/dev/shm', GIB, 'data loader workers', MORE_SHM)),
    ],
    'PyTorch': [
        ('torch', (), torch_itself),
        ('NVIDIA driver', COLLECT_ENV, driver),
        ('numpy', ('torch',), arrays),
        ('GPU', COLLECT_ENV, gpus),
        ('torchvision', ('torch',), torchvision),
        ('fused AdamW', ('torch',), fused_adamw),
        ('sdpa kernels', ('torch', 'torch.nn.attention'), sdpa_kernels),
    ],
    'Packages': [
        ('mm packages', (), families),
        ('cv2', (), opencv),
        *libraries('PIL', 'safetensors', 'tqdm', 'rich', 'matplotlib'),
        ('pycocotools', (), partial(coco_evaluation, 'pycocotools', *DISTRIBUTIONS['mmdet'])),
        ('faster_coco_eval', (), partial(coco_evaluation, 'faster_coco_eval', 'onedl-mmdetection')),
        *libraries('triton', 'huggingface_hub'),
    ],
    'Models': [
        ('mmengine', (), partial(framework, 'mmengine', 'torch')),
        ('mmcv', (), partial(framework, 'mmcv', 'torch', 'cv2', 'mmengine')),
        ('gcvit_mm', (), package),
        ('mmcv.ops', (*MODELS, 'mmcv', 'gcvit_mm.compat.mmcv_ops'), operations),
        ('nms', OPERATIONS, nms),
        ('roi_align', OPERATIONS, roi_align),
        ('deformable attention', OPERATIONS[:-1], deformable_attention),
        ('attention: eager', MODELS, partial(attention, 'eager')),
        ('attention: sdpa', MODELS, partial(attention, 'sdpa')),
        ('attention: triton', MODELS, partial(attention, 'triton')),
        ('mmdet', (), partial(framework, 'mmdet', *MODELS, 'mmcv.ops', 'pycocotools')),
        ('mmseg', (), partial(framework, 'mmseg', *MODELS, 'mmcv.ops')),
        ('mmpretrain', (), partial(framework, 'mmpretrain', *MODELS, 'mmcv', 'torchvision')),
    ],
    'Extras': [('extras', (), extras)],
    'Files': [
        ('zoo', (), zoo),
        ('disk', (), partial(space, '.', 5 * GIB, 'checkpoints', 'free some, or use --work-dir')),
        ('checkpoints', ('gcvit_mm.models', 'gcvit_mm.weights.hub'), checkpoints),
        ('data', ('gcvit_mm.models', 'gcvit_mm.config', 'gcvit_mm.zoo'), data),
    ],
}

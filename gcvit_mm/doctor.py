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
OPERATIONS = (*MODELS, 'mmcv.ops')
REGISTERED = (*MODELS, 'cv2', 'mmengine', 'mmcv', 'safetensors', 'tqdm')
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
    for module in modules:
        try:
            if module in problems():
                raise ImportError
            importlib.import_module(module)
        except (Exception, SystemExit):  # the module's own check reports it
            raise Skipped(module) from None
    return [sys.modules[module] for module in modules]


def pins_of(module: str) -> list[str]:
    return installed(DISTRIBUTIONS.get(module, (module,)))


def one_line(error: BaseException) -> str:
    return textwrap.shorten(f'{type(error).__name__}: {error}', 300, placeholder=' ...')


def version_of(name: str) -> str:
    return ''.join(pin.partition('==')[2] for pin in installed((name,)))


def gib(size: float) -> str:
    return f'{size / GIB:.1f} GiB'


def memory() -> str:
    limit = Path('/sys/fs/cgroup/memory.max')  # of a container
    text = limit.read_text().strip() if limit.is_file() else ''
    total = gib(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    return f'{total}, limited to {gib(int(text))}' if text.isdigit() else total


def space(path: str, minimum: int, purpose: str, fix: str) -> Finding:
    if not os.path.isdir(path):
        return Finding(f'no {path}', ABSENT)
    size = shutil.disk_usage(path).free
    free = f'{gib(size)} free in {os.path.abspath(path)}'
    problem = f'There are only {free}, which may be too little for {purpose}.'
    return Finding(free) if size >= minimum else Finding(free, WARNING, problem, fix)


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
    if gpus := env.get_gpu_info(env.run):
        found = '; '.join(gpus.splitlines())
        return Finding(f'{found}, driver {env.get_nvidia_driver_version(env.run)}')
    if shutil.which('nvidia-smi') is None:
        return Finding('none', ABSENT)
    problem = f'The NVIDIA driver does not respond: {" ".join(env.run("nvidia-smi")[1:])}'
    return Finding('(broken)', WARNING, problem, 'restart the machine, or reinstall the driver')


def arrays(torch: Any) -> str:
    torch.from_numpy(torch.zeros(2).numpy())
    return version_of('numpy')


def gpus(torch: Any, env: Any) -> Iterator[Finding]:
    for device, (gpu, failure) in (known := accelerators(torch)).items():
        broken = (gpu, ERROR, f'{gpu} does not work: {failure}')
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
    known = {'mps': 'Metal (MPS)'} if torch.backends.mps.is_available() else {}
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
    kernels = []
    for device in (name for name in devices(torch) if name != 'mps'):  # MPS has only one kernel
        dtype = torch.float16 if device == 'cuda' else torch.float32
        q, bias = (torch.randn(1, 2, 16, n, device=device, dtype=dtype) for n in (32, 16))
        for name in ('FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION', 'MATH'):
            # Kernels that this torch or device lacks raise an error.
            with contextlib.suppress(RuntimeError, AssertionError):
                with attention.sdpa_kernel(getattr(attention.SDPBackend, name, None)):
                    torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=bias)
                kernels.append(f'{name.lower().partition("_")[0]} on {device}')
    return f'with a bias: {", ".join(kernels)}'


def families() -> Finding:
    """Check which of the two families of mm packages is installed."""
    both = {"OpenMMLab's": OPENMMLAB, 'onedl': ONEDL}
    names = ' and '.join(name for name, members in both.items() if installed(members))
    problem = problems().get('mm')
    return Finding(names or 'none', ERROR, *problem) if problem else Finding(names)


def library(module: str, *needed: str, users: tuple[str, ...] = ()) -> Finding:
    """Check that a package can be imported, if one of the distributions that use it is there."""
    if users and not installed(users):
        raise Skipped(users[0])
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


def installation() -> Finding:
    if INSTALLED:
        return Finding(f'{version_of("gcvit_mm")}, {PACKAGE}')
    extra = '' if installed(OPENMMLAB + ONEDL) else '[mm]'
    fix = f"pip install -e '{ROOT}{extra}'"
    return Finding(f'only in {PACKAGE}', ERROR, 'gcvit_mm is not installed for this Python.', fix)


def registration(*_: Any) -> str:
    """Import what a config may name and what a training needs."""
    for part in ('engine.setup', 'register'):
        importlib.import_module(f'gcvit_mm.{part}')
    return 'imports of a training'


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


def replacements(_: Any, __: Any, ___: Any, ops: Any) -> str:
    return ops.implementation().partition(': ')[2].partition(';')[0]


def operation(run: Callable[[Any, Any, str], bool], torch: Any, _: Any, ops: Any, *__: Any) -> str:
    """Check the result of an operation on all devices."""
    for device in devices(torch):
        if not run(torch, ops, device):
            raise RuntimeError(f'its result is wrong on {device}')
    return f'runs on {", ".join(devices(torch))}'


def nms(torch: Any, ops: Any, device: str) -> bool:
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 28, 28]], device=device)
    return ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]).to(device), 0.5)[1].tolist() == [1, 2]


def roi_align(torch: Any, ops: Any, device: str) -> bool:
    features = torch.ones(1, 2, 8, 8, device=device, requires_grad=True)
    box = torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    ops.roi_align(features, box, (2, 2), 1.0, 0, 'avg', True).sum().backward()
    return abs(features.grad.sum().item() - 8) < 1e-4


def deformable_attention(torch: Any, ops: Any, device: str) -> bool:
    layer = ops.MultiScaleDeformableAttention(32, num_heads=2, num_levels=1, num_points=2)
    tokens = torch.ones(16, 1, 32, device=device, requires_grad=True)
    shapes, start = torch.tensor([[4, 4]], device=device), torch.tensor([0], device=device)
    points = dict(reference_points=torch.full((1, 16, 1, 2), 0.5, device=device))
    out = layer.to(device)(tokens, spatial_shapes=shapes, level_start_index=start, **points)
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


def zoo() -> str:
    ready = importlib.import_module('gcvit_mm.zoo')
    return f'{len(ready.names())} configs in {ready.CONFIGS}'


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
        ('CPU', (), lambda: f'{os.cpu_count()} cores, {platform.machine()}'),
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
        *libraries('cv2', 'PIL', 'safetensors', 'tqdm', 'rich', 'matplotlib'),
        ('pycocotools', (), partial(library, 'pycocotools', users=DISTRIBUTIONS['mmdet'])),
        ('faster_coco_eval', (), partial(library, 'faster_coco_eval', users=ONEDL)),
        *libraries('triton', 'huggingface_hub'),
    ],
    'Models': [
        ('mmengine', (), partial(framework, 'mmengine', 'torch')),
        ('mmcv', (), partial(framework, 'mmcv', 'torch', 'cv2', 'mmengine')),
        ('gcvit_mm', (), installation),
        ('registration', REGISTERED, registration),
        ('mmcv.ops', (*MODELS, 'mmcv', 'gcvit_mm.compat.mmcv_ops'), replacements),
        ('nms', OPERATIONS, partial(operation, nms)),
        ('roi_align', OPERATIONS, partial(operation, roi_align)),
        ('deformable attention', OPERATIONS, partial(operation, deformable_attention)),
        *((f'attention: {x}', MODELS, partial(attention, x)) for x in ('eager', 'sdpa', 'triton')),
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

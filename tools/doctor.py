"""Say what works in this environment, what is broken, and how to fix it."""

# Only the standard library is imported here. Each section of checks runs in a process of its own,
# which may crash, and imports there what may fail.
from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

SECONDS = 300
"""How long a section may take: the first kernel on a new GPU takes minutes."""
GIB = 2**30
HERE = Path(__file__).resolve().parent
# An installed package carries this file in its .mim; in a checkout, tools/ is beside the package.
PACKAGE = next(p for p in (HERE.parents[1], HERE.parent / 'gcvit_mm') if (p / 'compat').is_dir())
INSTALLED = find_spec('gcvit_mm') is not None
NEW_PYTHON = sys.version_info >= (3, 11)
if NEW_PYTHON:  # what this package says of others, without its import, which changes mmengine's
    COMPAT = (str(PACKAGE / 'compat' / name) for name in ('environment.py', 'packages.py'))
    environment, packages = (SimpleNamespace(**runpy.run_path(file)) for file in COMPAT)

OK, ABSENT, WARNING, ERROR = 'ok', 'absent', 'warning', 'error'
MARKS = {OK: ('ok', 32), ABSENT: ('-', 2), WARNING: ('!', 33), ERROR: ('X', 31)}
"""How the table shows a state, and the ANSI code of its colour."""
OPENCV = ('opencv-python', 'opencv-contrib-python')
# The names on PyPI of modules that pip knows by another name.
DISTRIBUTIONS = {
    'mmcv': ('mmcv-lite', 'mmcv', 'onedl-mmcv'),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'cv2': (*OPENCV, *(f'{name}-headless' for name in OPENCV)),
    'PIL': ('pillow',),
    'yaml': ('pyyaml',),
    'faster_coco_eval': ('faster-coco-eval',),
}


LIBRARIES = ('PIL', 'safetensors', 'tqdm', 'rich', 'matplotlib')
OPTIONAL = {'triton': "attn_impl='triton'", 'huggingface_hub': 'fetching published weights'}
ATTENTION = ('eager', 'sdpa', 'triton')
MODELS = ('torch', 'gcvit_mm.models')
OPERATIONS = (*MODELS, 'mmcv.ops', 'torchvision')
MORE_SHM = """docker run --shm-size=8g ...
or, in each training: --cfg-options train_dataloader.num_workers=0 \
    train_dataloader.persistent_workers=False"""


class Finding(NamedTuple):
    """A line of the report; a problem is a sentence, and its fix is commands, one on each line."""

    found: str
    state: str = OK
    problem: str = ''
    fix: str = ''
    name: str = ''  # the title of the check, unless the check names its findings


class NotTried(Exception):
    """What a check needs is missing or broken, which another check reports."""


# The runner -----------------------------------------------------------------------------------


def main() -> None:
    end = 'Exit status: 1 where something needed is broken, 0 otherwise.'
    parser = argparse.ArgumentParser(description=__doc__, epilog=end)
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument('--section', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        report_section(args.section)
        return
    found = examine_all() if NEW_PYTHON else {'Python': list(attempt('Python', (), python))}
    findings = [(section, finding) for section, lines in found.items() for finding in lines]
    failed = any(finding.state == ERROR for _, finding in findings)
    if args.json:
        lines = [{'section': section, 'name': '', **f._asdict()} for section, f in findings]
        print(json.dumps({'ok': not failed, 'findings': lines}, indent=1))
    else:
        print_table(found)
        print_problems([finding for _, finding in findings])
    sys.exit(failed)


def examine_all() -> dict[str, list[Finding]]:
    found, shown = {}, sys.stderr.isatty()
    with ThreadPoolExecutor(max_workers=3) as pool:
        for section, findings in zip(SECTIONS, pool.map(examine, SECTIONS)):  # noqa: B905
            found[section] = findings
            if shown:
                print(f'\r\033[Kchecked: {section}', end='', file=sys.stderr, flush=True)
    if shown:
        print('\r\033[K', end='', file=sys.stderr)
    return found


def examine(section: str) -> list[Finding]:
    """What the process of a section reports, and how it ended if it ended early."""
    command = [sys.executable, __file__, '--section', section]
    try:
        run = subprocess.run(command, capture_output=True, timeout=SECONDS)
        status = run.returncode
        ended = f'status {status}' if status >= 0 else signal.Signals(-status).name
    except subprocess.TimeoutExpired as error:
        run, ended = error, f'no answer in {SECONDS} s'
    lines = [json.loads(line) for line in (run.stdout or b'').splitlines()]
    findings = [Finding(*line) for line in lines if isinstance(line, list)]
    if None not in lines:
        tried = [line for line in lines if isinstance(line, str)]
        name = tried[-1] if tried else section
        last = (run.stderr or b'').decode(errors='replace').strip().splitlines()[-1:]
        problem = f'Python ended while {name} was tried ({": ".join([ended, *last])}).'
        findings.append(broken(name, problem))
        rest = [title for title, *_ in SECTIONS[section] if title not in tried]
        findings += [Finding('not tried: Python ended before', ABSENT, name=name) for name in rest]
    return findings


def report_section(section: str) -> None:
    """Print, as JSON, titles of checks before they are tried, their findings, and a last null."""
    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # packages print when they are imported
    if not INSTALLED:
        sys.path.append(str(PACKAGE.parent))
    for title, needs, check in SECTIONS[section]:
        for line in (title, *attempt(title, needs, check)):
            print(json.dumps(line), file=channel, flush=True)
    print('null', file=channel, flush=True)


def attempt(title: str, needs: tuple[str, ...], check: Callable) -> Iterator[Finding]:
    """What a check reports, which is called with the modules that it needs."""
    try:
        findings = check(*need(*needs))
        for finding in [findings] if isinstance(findings, (str, Finding)) else findings:
            finding = Finding(finding) if isinstance(finding, str) else finding
            yield finding._replace(name=finding.name or title)
    except NotTried as error:
        yield Finding(f'not tried: needs {error}', ABSENT, name=title)
    except (Exception, SystemExit) as error:  # a broken package may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == title:
            problem = f'{title} is not installed.'
            yield Finding('not installed', ERROR, problem, fix_of(title, str(error)), title)
        else:
            yield broken(title, f'{title} does not work: {one_line(error)}')


def need(*modules: str) -> list[Any]:
    found = []
    for module in modules:
        try:
            found.append(importlib.import_module(module))
        except (Exception, SystemExit):  # which the check of the module reports
            raise NotTried(module) from None
    return found


def broken(title: str, problem: str) -> Finding:
    found = ' '.join([*pins_of(title), '(broken)'])
    return Finding(found, ERROR, problem, fix_of(title, problem), title)


def one_line(error: BaseException) -> str:
    return textwrap.shorten(f'{type(error).__name__}: {error}', 300, placeholder=' ...')


def fix_of(title: str, reason: str) -> str:
    """The fix of a known failure."""
    old = environment.release(version_of('torch') or '9.9') < (2, 3)
    numpy = "pip install 'numpy<2'" if old else 'pip install --force-reinstall numpy'
    headless = "'opencv-python-headless<4.12'" if old else 'opencv-python-headless'
    opencv = ''.join(pin.partition('==')[2] for pin in pins_of('cv2')[:1])
    again = f'pip install --force-reinstall --no-deps opencv-python-headless=={opencv}'
    missing = ''.join(re.findall(r"No module named '(\w+)", reason))
    onedl = bool(environment.installed(environment.ONEDL))
    mmcv_lite = r"pip uninstall -y mmcv mmcv-lite\npip install 'mmcv-lite>=\1,<\2'"
    fixes = {
        r'\bNumPy 1\.x|Numpy is not available|_ARRAY_API|numpy\.dtype size': numpy,
        r'pkg_resources': "pip install 'setuptools<81'",
        r'no kernel image': 'install a torch with code for this GPU: https://pytorch.org',
        r'not currently implemented for the MPS': 'export PYTORCH_ENABLE_MPS_FALLBACK=1',
        r'MMCV==\S+ is used but incompatible.*install mmcv>=(\S+), <(\S+?)\.?$': mmcv_lite,
        r'^mmcv\.ops |mmcv.*_ext\b.*(undefined symbol|shared object)': without_operations(),
        r"^torchvision |No module named 'torchvision": install_torchvision(),
        r"No module named 'cv2": f'pip install {headless}',
        r"No module named '\w": f'pip install {distributions(missing)[-1 if onedl else 0]}',
        r'cv2|\blib(GL|g?thread|glib|SM|X)\S*\.so': again if opencv else '',
    }
    matches = ((re.search(pattern, f'{title} {reason}'), fix) for pattern, fix in fixes.items())
    return next((match.expand(fix) for match, fix in matches if match), '')


def without_operations() -> str:
    """Pure Python in place of what was compiled for another torch; ours stand in for it."""
    pin = ''.join(pins_of('mmcv')[:1])
    if pin.startswith('onedl'):
        return f'MMCV_WITH_OPS=0 pip install --force-reinstall --no-deps --no-cache-dir {pin}'
    return f'pip uninstall -y mmcv\npip install mmcv-lite=={pin.partition("==")[2]}'


def install_torchvision() -> str:
    build = version_of('torch').partition('+')[2]
    index = f' --index-url https://download.pytorch.org/whl/{build}' if build else ''
    return f'pip install {torch_with_torchvision()}{index}'


def torch_with_torchvision() -> str:
    """Requirements: this release of torch, and a torchvision for it.

    Releases went together, torch 2.1 with torchvision 0.16 for example, until torchvision 0.29,
    which is built for the stable ABI: it runs on torch 2.14 and all later ones.
    """
    major, minor = environment.release(version_of('torch'))
    torchvision = '>=0.29' if (major, minor) >= (2, 14) else f'==0.{minor + 15}.*'
    return f"'torch=={major}.{minor}.*' 'torchvision{torchvision}'"


def distributions(module: str) -> tuple[str, ...]:
    known = packages.PACKAGES.get(module)
    return known.distributions if known else DISTRIBUTIONS.get(module, (module,))


def pins_of(module: str) -> list[str]:
    return environment.installed(distributions(module))


def version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ''


# The machine ----------------------------------------------------------------------------------


def python() -> Finding:
    found = f'{platform.python_version()}, {sys.executable}'
    if NEW_PYTHON:
        return Finding(found)
    problem = f'gcvit_mm needs Python 3.11 or later, and this is {platform.python_version()}.'
    return Finding(found, ERROR, problem, 'python3.13 -m venv .venv; source .venv/bin/activate')


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
    return Finding(f'{total}, {free} of it free{limited}')


def room(path: str, least: int, purpose: str, fix: str) -> Finding:
    if not os.path.isdir(path):
        return Finding(f'no {path}', ABSENT)
    free = gib(shutil.disk_usage(path).free)
    if shutil.disk_usage(path).free >= least:
        return Finding(f'{free} free in {os.path.abspath(path)}')
    problem = f'{os.path.abspath(path)} has only {free} free for {purpose}.'
    return Finding(free, WARNING, problem, fix)


def read(path: str) -> str:
    return Path(path).read_text() if os.path.isfile(path) else ''


def gib(size: float) -> str:
    return f'{size / GIB:.1f} GiB'


# PyTorch --------------------------------------------------------------------------------------


def torch_itself() -> Finding:
    found = version_of('torch')
    if 'torch' in environment.problems():
        return Finding(found or 'not installed', ERROR, *environment.problems()['torch'])
    cuda = importlib.import_module('torch').version.cuda
    built = f'{found}, CUDA {cuda}' if cuda else f'{found}, without CUDA'
    problem = f'torch {found} has known vulnerabilities in its loader: '
    problem += ', '.join(environment.loader_cves(found))
    fix = 'load only .pth files that you trust, or install torch 2.10 or later'
    vulnerable = Finding(built, WARNING, f'{problem}.', fix)
    return vulnerable if environment.loader_cves(found) else Finding(built)


def driver(env: Any) -> Finding:
    gpus = '; '.join((env.get_gpu_info(env.run) or '').splitlines())
    if gpus:
        return Finding(f'{gpus}, driver {env.get_nvidia_driver_version(env.run)}')
    if shutil.which('nvidia-smi') is None:
        return Finding('none', ABSENT)
    problem = f'The NVIDIA driver does not answer: {" ".join(env.run("nvidia-smi")[1:])}'
    return Finding('(broken)', WARNING, problem, 'restart the machine, or reinstall the driver')


def arrays(torch: Any) -> str:
    torch.from_numpy(torch.zeros(2).numpy())
    return version_of('numpy')


def gpus(torch: Any, env: Any) -> Iterator[Finding]:
    for device, found in accelerators(torch).items():
        name = device.replace('cuda:', 'GPU ').replace('mps', 'GPU')
        failure = failure_of(torch, device)
        problem = f'{found} does not work: {failure}'
        yield broken(name, problem) if failure else Finding(found, name=name)
    if accelerators(torch):
        return
    if not env.get_gpu_info(env.run) or os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        yield Finding('none: everything runs on the CPU', ABSENT)
        return
    reason, cuda = 'it does not say why.', torch.version.cuda
    try:
        torch.cuda.init()
    except Exception as error:
        reason = one_line(error)
    fix = f'install a driver for CUDA {cuda}, or a torch for an older one: https://pytorch.org'
    if cuda is None:
        fix = f'pip install --force-reinstall {torch_with_torchvision()}'
        fix += ' --index-url https://pypi.org/simple'
    problem = f'torch does not find the GPU that the driver has: {reason}'
    yield Finding('(broken)', ERROR, problem, fix)


def accelerators(torch: Any) -> dict[str, str]:
    """The GPUs that torch finds, by device."""
    mps = torch.backends.mps.is_available()
    found = {'mps': f'{platform.machine()}, Metal (MPS)'} if mps else {}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability = f'capability {gpu.major}.{gpu.minor}'
        found[f'cuda:{index}'] = f'{gpu.name}, {gib(gpu.total_memory)}, {capability}'
    return found


def failure_of(torch: Any, device: str) -> str:
    """How a product of matrices fails on a device."""
    try:
        ones = torch.ones(64, 64, device=device)
        return '' if (ones @ ones).sum().item() == 64**3 else 'a matrix product is wrong'
    except Exception as error:
        return one_line(error)


def devices(torch: Any) -> list[str]:
    """The kinds of devices that work; the check of GPUs reports those that do not."""
    working = (name for name in accelerators(torch) if not failure_of(torch, name))
    return ['cpu', *dict.fromkeys(name.partition(':')[0] for name in working)]


def torchvision(torch: Any) -> str:
    importlib.import_module('torchvision').ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
    return version_of('torchvision')


def fused_adamw(torch: Any) -> Finding:
    """The optimizer of the ready configs."""
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
    """Which of PyTorch's kernels take a bias; 'sdpa' runs on one of them."""
    told = []
    for device in (name for name in devices(torch) if name != 'mps'):  # which has one kernel
        dtype = torch.float16 if device == 'cuda' else torch.float32
        q, bias = (torch.randn(1, 2, 16, n, device=device, dtype=dtype) for n in (32, 16))
        run = []
        for name in ('FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION', 'MATH'):
            # A kernel raises where it does not run, and torch where it has no such kernel.
            with contextlib.suppress(RuntimeError, AssertionError):
                with attention.sdpa_kernel(getattr(attention.SDPBackend, name, None)):
                    torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=bias)
                run.append(name.lower().partition('_')[0])
        told.append(f'{", ".join(run)} on {device}')
    return f'with a bias: {"; ".join(told)}'


# Packages that are imported -------------------------------------------------------------------


def families() -> Finding:
    """Which of the two families of mm packages is installed."""
    both = {"OpenMMLab's": environment.OPENMMLAB, 'onedl': environment.ONEDL}
    found = ' and '.join(name for name, members in both.items() if environment.installed(members))
    problem = environment.problems().get('mm')
    return Finding(found or 'none', ERROR, *problem) if problem else Finding(found)


def opencv() -> str | Finding:
    if (finding := library('cv2')).state != OK:
        return finding
    import cv2
    import numpy

    cv2.resize(numpy.zeros((4, 4, 3), 'uint8'), (2, 2))
    kind = 'headless' if getattr(cv2.version, 'headless', False) else 'with windows'
    return f'{cv2.__version__}, {kind}, of {", ".join(pins_of("cv2"))}'


def coco_evaluation() -> Iterator[Finding]:
    """The onedl family's mmdet evaluates by faster_coco_eval, OpenMMLab's by pycocotools."""
    if find_spec('mmdet') is None:
        raise NotTried('mmdet')
    yield library('pycocotools', parts=('pycocotools.mask',))
    if version_of('onedl-mmdetection'):
        yield library('faster_coco_eval')._replace(name='faster_coco_eval')


def library(module: str, *needed: str, purpose: str = '', parts: tuple[str, ...] = ()) -> Finding:
    """Whether a package is installed and can be imported; with a purpose it is optional."""
    if find_spec(module) is None and purpose:
        fix = fix_of(module, f"No module named '{module}'")
        return Finding(f'not installed, for {purpose}', ABSENT, '', fix)
    if find_spec(module) is find_spec('mmengine') is None and module != 'safetensors':
        return Finding('comes with the mm packages', ABSENT)
    need(*needed)
    for name in (module, *parts):
        importlib.import_module(name)
    return Finding(' '.join(pins_of(module)))


def framework(module: str, *needed: str) -> Finding:
    """One of the mm packages, of which the other family's uninstallation may take files."""
    if 'mm' in environment.problems():
        raise NotTried('one family of mm packages')
    for pin in pins_of(module):
        installed = distribution(pin.partition('==')[0])
        # `files` leaves out what is gone, from Python 3.12 on.
        files = re.findall(rf'^({module}/.*?\.py),', installed.read_text('RECORD') or '', re.M)
        gone = [file for file in files if not Path(str(installed.locate_file(file))).exists()]
        if gone:
            problem = f'{len(gone)} of {len(files)} files of {pin} are gone, {gone[0]} for example.'
            fix = f'pip install --force-reinstall --no-deps {pin}'
            return Finding(f'{pin} (files gone)', ERROR, problem, fix)
    if module not in packages.PACKAGES:
        return library(module, *needed)
    parts = (f'{module}.models', f'{module}.datasets')
    return library(module, *needed, purpose=packages.PACKAGES[module].task, parts=parts)


def extras() -> Iterator[Finding]:
    """The package's optional parts; the lists are its own."""
    if not INSTALLED:
        raise NotTried('gcvit_mm installed')
    wanted: dict[str, list[str]] = {}
    for line in requires('gcvit_mm') or []:
        for name, extra in re.findall(r'^([\w-]+)[^;]*;.*extra == .(?!mm|test)(\w+)', line):
            wanted.setdefault(extra, []).append(name)
    for extra, names in wanted.items():
        pins = environment.installed(tuple(names))
        missing = ', '.join(sorted({*names} - {pin.split('==')[0] for pin in pins}))
        fix = f"pip install 'gcvit_mm[{extra}]'"
        absent = Finding(f'without {missing}', ABSENT, '', fix, extra)
        yield absent if missing else Finding(' '.join(pins), name=extra)


def package() -> Iterator[Finding]:
    if not INSTALLED:
        families = environment.OPENMMLAB + environment.ONEDL
        extra = '' if environment.installed(families) else '[mm]'
        fix = f'pip install -e {shlex.quote(str(PACKAGE.parent) + extra)}'
        problem = 'gcvit_mm is not installed for this Python.'
        yield Finding(f'only in {PACKAGE}', ERROR, problem, fix)
    if environment.problems():
        raise NotTried('torch and one family of mm packages')
    need('torch', 'cv2', 'mmengine', 'mmcv', 'safetensors', 'tqdm')
    for part in ('gcvit_mm.engine.setup', 'gcvit_mm.register'):
        importlib.import_module(part)
    if INSTALLED:
        import gcvit_mm

        yield Finding(f'{gcvit_mm.__version__}, {Path(gcvit_mm.__file__).parent}')


def operations(*_: Any) -> str:
    from gcvit_mm.compat.mmcv_ops import implementation

    importlib.import_module('mmcv.ops')
    return implementation().partition(': ')[2].partition(';')[0]


def on_each_device(run: Callable[[Any, Any, str], bool]) -> Callable:
    """Make a check of a function that says whether the result on a device is right."""

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
    """One of the backbone's implementations, compared with the readable one."""

    def run(impl: str, device: str) -> tuple[Any, Any]:
        torch.manual_seed(0)
        layer = models.attention.WindowAttention(64, 2, 4, False, impl).to(device)
        # Windows do not divide this feature map.
        x = torch.randn(2, 9, 10, 64).to(device).requires_grad_()
        out = layer(x, models.windows.relative_position_index(4).to(device), None)
        out.square().sum().backward()
        return out.detach(), x.grad

    told = []
    for device in devices(torch):
        if impl == 'triton' and device != 'cuda':
            continue
        pairs = zip(run('eager', device), run(impl, device))  # noqa: B905
        error = max(((b - a).abs().max() / a.abs().max()).item() for a, b in pairs)
        if not error < 0.01:
            raise RuntimeError(f'it differs from eager on {device}: by {error:.2g}')
        told.append(device if impl == 'eager' else f'{device} (differs from eager by {error:.0e})')
    return Finding(f'runs on {", ".join(told)}') if told else Finding('needs a CUDA GPU', ABSENT)


# Files ----------------------------------------------------------------------------------------


def zoo() -> Finding:
    for root in (PACKAGE / '.mim', PACKAGE.parent):
        count = len(list(root.glob('configs/*.py')))
        if count:
            return Finding(f'{count} configs in {root / "configs"}')
    problem = f'The package in {PACKAGE} has no configs.'
    return Finding('none', ERROR, problem, 'pip install --force-reinstall --no-deps gcvit_mm')


def checkpoints(_: Any, hub: Any) -> str:
    folder, known = hub.default_folder(), hub.published().values()
    count = sum((folder / weights.file).is_file() for weights in known)
    return f'{count} of {len(known)} published weights in {folder}'


def data(_: Any, config: Any, zoo: Any) -> Iterator[Finding]:
    """Whether the data of the ready configs are there, by one config of each data set."""
    for dataset, name in {name.rpartition('_')[2]: name for name in zoo.names()}.items():
        loader = config.read_config(name, import_modules=False).val_dataloader
        folder = os.path.normpath(config.datasets_of(loader)[0].data_root)
        found = (folder, OK) if os.path.isdir(folder) else (f'not here: {folder}', ABSENT)
        yield Finding(*found, name=f'data: {dataset}')


# The table of checks --------------------------------------------------------------------------

SECTIONS: dict[str, list[tuple[str, tuple[str, ...], Callable]]] = {
    'Machine': [
        ('Python', (), python),
        ('system', (), platform.platform),
        ('CPU', (), processor),
        ('memory', (), memory),
        ('shared memory', (), partial(room, '/dev/shm', GIB, 'data loader workers', MORE_SHM)),
    ],
    'PyTorch': [
        ('torch', (), torch_itself),
        ('NVIDIA driver', ('torch.utils.collect_env',), driver),
        ('numpy', ('torch',), arrays),
        ('GPU', ('torch', 'torch.utils.collect_env'), gpus),
        ('torchvision', ('torch',), torchvision),
        ('fused AdamW', ('torch',), fused_adamw),
        ('sdpa kernels', ('torch', 'torch.nn.attention'), sdpa_kernels),
    ],
    'Packages': [
        ('mm packages', (), families),
        ('cv2', (), opencv),
        *((name, (), partial(library, name)) for name in LIBRARIES),
        ('pycocotools', (), coco_evaluation),
        *(
            (name, (), partial(library, name, purpose=purpose))
            for name, purpose in OPTIONAL.items()
        ),
    ],
    'Models': [
        ('mmengine', (), partial(framework, 'mmengine')),
        ('mmcv', (), partial(framework, 'mmcv', 'torch', 'cv2', 'mmengine')),
        ('gcvit_mm', (), package),
        ('mmcv.ops', (*MODELS, 'cv2', 'mmcv'), operations),
        ('nms', OPERATIONS, nms),
        ('roi_align', OPERATIONS, roi_align),
        ('deformable attention', OPERATIONS[:-1], deformable_attention),
        *((f'attention: {impl}', MODELS, partial(attention, impl)) for impl in ATTENTION),
        ('mmdet', (), partial(framework, 'mmdet', *MODELS, 'mmcv.ops', 'pycocotools')),
        ('mmseg', (), partial(framework, 'mmseg', *MODELS, 'mmcv.ops')),
        ('mmpretrain', (), partial(framework, 'mmpretrain', *MODELS, 'mmcv', 'torchvision')),
    ],
    'Extras': [('extras', (), extras)],
    'Files': [
        ('zoo', (), zoo),
        ('disk', (), partial(room, '.', 5 * GIB, 'checkpoints', 'free some, or use --work-dir')),
        ('checkpoints', ('gcvit_mm.models', 'gcvit_mm.weights.hub'), checkpoints),
        ('data', ('gcvit_mm.models', 'gcvit_mm.config', 'gcvit_mm.zoo'), data),
    ],
}

# The report -----------------------------------------------------------------------------------


def print_table(found: dict[str, list[Finding]]) -> None:
    widths = [max(map(len, found)), max(len(f.name) for lines in found.values() for f in lines)]
    colours = sys.stdout.isatty() and 'NO_COLOR' not in os.environ
    for section, findings in found.items():
        for heading, finding in zip((section, *[''] * len(findings)), findings):  # noqa: B905
            mark, colour = MARKS[finding.state]
            mark = f'\033[{colour}m{mark:<2}\033[0m' if colours else f'{mark:<2}'
            hint = f': {finding.fix}' if finding.state == ABSENT and finding.fix else ''
            name = f'{heading:<{widths[0]}}  {finding.name:<{widths[1]}}'
            print(f'{name}  {mark}  {finding.found}{hint}')


def print_problems(findings: list[Finding]) -> None:
    """Problems, those with one fix together above it."""
    for state in (ERROR, WARNING):
        by_fix: dict[str, list[str]] = {}
        for finding in findings:
            if finding.state == state:
                by_fix.setdefault(finding.fix, []).append(f'{state}: {finding.problem}')
        for fix, problems in by_fix.items():
            print('', *problems, *(f'  {line}' for line in fix.splitlines()), sep='\n')
    counts = {state: sum(f.state == state for f in findings) for state in (ERROR, WARNING)}
    print('\n' + ', '.join(f'{n} {state}{"s" * (n != 1)}' for state, n in counts.items()))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)

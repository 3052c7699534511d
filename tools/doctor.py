"""Say what of this environment works, what is broken, and what mends it."""

# Only the standard library is imported here, and never the package, which refuses a broken
# environment. What may fail is imported by the checks, in processes that may crash.
from __future__ import annotations

import argparse
import csv
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
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

MIN_PYTHON = (3, 11)
SECONDS = 300
"""How long a section may take: the first kernel on a new GPU takes minutes."""
GIB = 2**30
MIN_SHARED_MEMORY, MIN_DISK = 1 * GIB, 5 * GIB
HERE = Path(__file__).resolve().parent
# The package that this file belongs to: it is in the package's .mim, or beside it in a checkout.
PACKAGE = next(
    folder
    for folder in (HERE.parents[1], HERE.parent / 'gcvit_mm')
    if (folder / 'compat/environment.py').is_file()
)
INSTALLED = find_spec('gcvit_mm') is not None

OK, ABSENT, WARNING, ERROR = 'ok', 'absent', 'warning', 'error'
MARKS = {OK: ('ok', 'green'), ABSENT: ('-', 'dim'), WARNING: ('!', 'yellow'), ERROR: ('X', 'red')}

# Under which names pip knows what is imported under another.
DISTRIBUTIONS = {
    'mmcv': ('mmcv-lite', 'mmcv', 'onedl-mmcv'),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'cv2': (
        'opencv-python',
        'opencv-python-headless',
        'opencv-contrib-python',
        'opencv-contrib-python-headless',
    ),
    'PIL': ('pillow',),
    'yaml': ('pyyaml',),
    'faster_coco_eval': ('faster-coco-eval',),
}
TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
LIBRARIES = ('PIL', 'safetensors', 'tqdm', 'rich', 'matplotlib')
OPTIONAL = {'triton': "attn_impl='triton'", 'huggingface_hub': 'fetching published weights'}


class Finding(NamedTuple):
    """A line of the report; a problem is a sentence, what mends it is commands, a line each."""

    name: str
    found: str
    state: str = OK
    problem: str = ''
    mend: str = ''


class NotTried(Exception):
    """What a check needs is broken, which is another check's finding."""


def main() -> None:
    args = parse_args()
    if args.section:
        report_section(args.section)
        return
    if sys.version_info < MIN_PYTHON:
        found = {'Python': list(python())}
    else:
        found = examine_all()
    states = [finding.state for findings in found.values() for finding in findings]
    if args.json:
        print_json(found, ERROR not in states)
    else:
        print_table(found)
        print_problems(found)
    sys.exit(ERROR in states)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Exit status: 1 where something needed is broken, 0 otherwise.'
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument('--section', help=argparse.SUPPRESS)
    return parser.parse_args()


# Sections, each in a process of its own -------------------------------------------------------


def examine_all() -> dict[str, list[Finding]]:
    found, shown = {}, sys.stderr.isatty()
    with ThreadPoolExecutor(max_workers=3) as pool:
        findings = pool.map(examine, SECTIONS)
        for section in SECTIONS:
            if shown:
                print(f'\r\033[Kchecking: {section}', end='', file=sys.stderr, flush=True)
            found[section] = next(findings)
    if shown:
        print('\r\033[K', end='', file=sys.stderr)
    return found


def examine(section: str) -> list[Finding]:
    """What a section's process reports, and how it ended if it did not come to its end."""
    command = [sys.executable, __file__, '--section', section]
    with tempfile.TemporaryFile('w+') as output, tempfile.TemporaryFile('w+b') as said:
        try:
            status = subprocess.run(command, stdout=output, stderr=said, timeout=SECONDS).returncode
            ended = f'status {status}' if status >= 0 else signal.Signals(-status).name
        except subprocess.TimeoutExpired:
            ended = f'no answer in {SECONDS} s'
        output.seek(0)
        lines = [json.loads(line) for line in output]
        said.seek(0)
        last = said.read().decode(errors='replace').strip().splitlines()[-1:]
    findings = [Finding(*line) for line in lines if isinstance(line, list)]
    if None not in lines:
        tried = [line for line in lines if isinstance(line, str)]
        name = tried[-1] if tried else section
        reason = ': '.join([ended, *last])
        findings.append(broken(name, f'Python ended while {name} was tried ({reason}).'))
        rest = [name for name in SECTIONS[section] if name not in tried]
        findings += [Finding(name, 'not tried: Python ended before', ABSENT) for name in rest]
    return findings


def report_section(section: str) -> None:
    """Print, as JSON, names of checks before they are tried, their findings, and a last null."""
    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # packages print when they are imported
    if not INSTALLED:
        sys.path.append(str(PACKAGE.parent))

    def tell(line: Any) -> None:
        print(json.dumps(line), file=channel, flush=True)

    for name, check in SECTIONS[section].items():
        tell(name)
        for finding in attempt(name, check):
            tell(finding)
    tell(None)


def attempt(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    findings = []
    try:
        for finding in check():
            findings.append(finding)
    except NotTried as error:
        findings.append(Finding(name, f'not tried: {error}', ABSENT))
    except (Exception, SystemExit) as error:  # a broken package may raise anything
        findings.append(broken(name, f'{name} does not work: {one_line(error)}'))
    return findings


def broken(name: str, problem: str) -> Finding:
    pins = environment().installed(DISTRIBUTIONS.get(name, (name,)))
    return Finding(name, ' '.join([*pins, '(broken)']), ERROR, problem, advice(problem))


def one_line(error: BaseException) -> str:
    return textwrap.shorten(f'{type(error).__name__}: {error}', 300, placeholder=' ...')


def advice(reason: str) -> str:
    """What mends a known failure."""
    old_numpy = environment().release(version_of('torch') or '9.9') < (2, 3)
    headless = 'opencv-python-headless'
    if re.search(r'\bNumPy 1\.x|Numpy is not available|_ARRAY_API|numpy\.dtype size', reason):
        return "pip install 'numpy<2'" if old_numpy else 'pip install --force-reinstall numpy'
    if 'pkg_resources' in reason:
        return "pip install 'setuptools<81'"
    if 'no kernel image' in reason:
        return 'this torch has no code for this GPU: https://pytorch.org has builds for others'
    wanted = re.search(
        r'MMCV==\S+ is used but incompatible.*install mmcv>=(\S+), <(\S+?)\.?$', reason
    )
    if wanted:
        return f"pip uninstall -y mmcv mmcv-lite\npip install 'mmcv-lite>={wanted[1]},<{wanted[2]}'"
    if 'mmcv' in reason and re.search(r'_ext\b.*(undefined symbol|shared object)', reason):
        return without_operations()
    missing = re.search(r"No module named '(\w+)", reason)
    if missing and missing[1] == 'torchvision':
        return install_torchvision()
    if missing and missing[1] == 'cv2':
        return f"pip install '{headless}<4.12'" if old_numpy else f'pip install {headless}'
    if missing:
        return f'pip install {DISTRIBUTIONS.get(missing[1], (missing[1],))[0]}'
    pins = environment().installed(DISTRIBUTIONS['cv2'])
    if pins and re.search(r'cv2|\blib(GL|g?thread|glib|SM|X)\S*\.so', reason):
        return f'pip install --force-reinstall --no-deps {headless}=={pins[0].split("==")[1]}'
    return ''


def need(*modules: str) -> None:
    """Import what a check stands on."""
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit):  # which the module's own check reports
            raise NotTried(f'needs {module}') from None


def environment() -> SimpleNamespace:
    """The package's own checks, without the package."""
    return SimpleNamespace(**runpy.run_path(str(PACKAGE / 'compat/environment.py')))


def version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ''


# The machine ----------------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    found = f'{platform.python_version()}, {sys.executable}'
    if sys.version_info >= MIN_PYTHON:
        yield Finding('Python', found)
        return
    problem = f'gcvit_mm needs Python 3.11 or later, and this is {platform.python_version()}.'
    mend = 'python3.13 -m venv .venv; source .venv/bin/activate'
    yield Finding('Python', found, ERROR, problem, mend)


def system() -> Iterator[Finding]:
    yield Finding('system', platform.platform())


def processor() -> Iterator[Finding]:
    model = re.search(r'model name\s*: (.*)', read('/proc/cpuinfo'))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    yield Finding('CPU', f'{usable} cores, {model[1] if model else platform.machine()}')


def memory() -> Iterator[Finding]:
    sizes = dict(re.findall(r'(\w+): +(\d+) kB', read('/proc/meminfo')))
    if not sizes:
        yield Finding('memory', 'unknown', ABSENT)
        return
    total, free = (int(sizes[key]) * 1024 for key in ('MemTotal', 'MemAvailable'))
    limit = read('/sys/fs/cgroup/memory.max').strip()
    limited = f', limited to {gib(int(limit))}' if limit.isdigit() else ''
    yield Finding('memory', f'{gib(total)}, {gib(free)} of it free{limited}')


def shared_memory() -> Iterator[Finding]:
    if not os.path.isdir('/dev/shm'):
        yield Finding('shared memory', 'no /dev/shm', ABSENT)
        return
    size = shutil.disk_usage('/dev/shm').total
    if size >= MIN_SHARED_MEMORY:
        yield Finding('shared memory', gib(size))
        return
    problem = f'/dev/shm has {gib(size)}, in which the processes that load data may not find room.'
    mend = (
        'docker run --shm-size=8g ...\n'
        'or, in each training: --cfg-options train_dataloader.num_workers=0 '
        'train_dataloader.persistent_workers=False'
    )
    yield Finding('shared memory', gib(size), WARNING, problem, mend)


def driver() -> Iterator[Finding]:
    gpus, failure = ask_driver()
    if failure:
        problem = f'The NVIDIA driver does not answer: {failure}'
        mend = 'restart the machine, or install the driver again'
        yield Finding('NVIDIA driver', '(broken)', WARNING, problem, mend)
    elif gpus:
        yield Finding('NVIDIA driver', '; '.join(gpus))
    else:
        yield Finding('NVIDIA driver', 'none', ABSENT)


def ask_driver() -> tuple[list[str], str]:
    """GPUs that the driver knows, and what it says if it fails."""
    if shutil.which('nvidia-smi') is None:
        return [], ''
    query = ['--query-gpu=name,memory.total,driver_version', '--format=csv,noheader']
    try:
        told = subprocess.run(['nvidia-smi', *query], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired as error:
        return [], one_line(error)
    lines = told.stdout.strip().splitlines()
    return ([], ' '.join(lines)) if told.returncode else (lines, '')


def read(path: str) -> str:
    return Path(path).read_text() if os.path.isfile(path) else ''


def gib(size: float) -> str:
    return f'{size / GIB:.1f} GiB'


# PyTorch --------------------------------------------------------------------------------------


def torch_itself() -> Iterator[Finding]:
    found = version_of('torch')
    problem = environment().problems().get('torch')
    if problem:
        yield Finding('torch', found or 'not installed', ERROR, *problem)
        return
    import torch

    platform = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'
    cves = environment().loader_cves(found)
    if cves:
        problem = f'torch {found} has known vulnerabilities in its loader: {", ".join(cves)}.'
        mend = 'load only .pth files that you trust; torch 2.10 and later have mended them'
        yield Finding('torch', f'{found}, {platform}', WARNING, problem, mend)
    else:
        yield Finding('torch', f'{found}, {platform}')


def arrays() -> Iterator[Finding]:
    need('torch')
    import numpy
    import torch

    torch.from_numpy(torch.zeros(2).numpy())
    yield Finding('numpy', numpy.__version__)


def gpus() -> Iterator[Finding]:
    need('torch')
    import torch

    if torch.backends.mps.is_available():
        multiply('mps')
        yield Finding('GPU', f'{platform.machine()}, by Metal (MPS)')
        return
    if not torch.cuda.is_available():
        yield no_gpu()
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        multiply(f'cuda:{index}')
        capability = f'{device.major}.{device.minor}'
        found = f'{device.name}, {gib(device.total_memory)}, capability {capability}'
        yield Finding(f'GPU {index}', found)


def multiply(device: str) -> None:
    import torch

    ones = torch.ones(64, 64, device=device)
    if (ones @ ones).sum().item() != 64**3:
        raise RuntimeError('a product of matrices is wrong')


def no_gpu() -> Finding:
    import torch

    there, _ = ask_driver()
    if not there or os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return Finding('GPU', 'none: everything runs on the CPU', ABSENT)
    if torch.version.cuda is None:
        reason = 'it is built without CUDA.'
        mend = f'pip install --force-reinstall {torch_with_torchvision()}'
        mend += ' --index-url https://pypi.org/simple'
    else:
        try:
            torch.cuda.init()
            reason = 'it does not say why.'
        except Exception as error:
            reason = one_line(error)
        mend = f'a driver for CUDA {torch.version.cuda}, or a torch for an older one: '
        mend += 'https://pytorch.org/get-started'
    problem = f'torch does not find the GPU that the driver has: {reason}'
    return Finding('GPU', '(broken)', ERROR, problem, mend)


def fused_adamw() -> Iterator[Finding]:
    """The optimizer of the ready configs."""
    need('torch')
    import torch

    device = devices()[-1]
    parameter = torch.nn.Parameter(torch.ones(4, device=device))
    try:
        parameter.sum().backward()
        torch.optim.AdamW([parameter], fused=True).step()
    except RuntimeError:
        problem = f'torch {torch.__version__} has no fused AdamW on {device}.'
        mend = '--cfg-options optim_wrapper.optimizer.fused=False    in each training'
        yield Finding('fused AdamW', f'not on {device}', WARNING, problem, mend)
        return
    yield Finding('fused AdamW', f'runs on {device}')


def torchvision() -> Iterator[Finding]:
    need('torch')
    if find_spec('torchvision') is None:
        problem = 'torchvision is not installed, which has the operations of detectors.'
        yield Finding('torchvision', 'not installed', ERROR, problem, install_torchvision())
        return
    try:
        run_torchvision()
    except Exception as error:  # one that was built for another torch fails in many ways
        found, beside = version_of('torchvision'), version_of('torch')
        problem = f'torchvision {found} does not work with torch {beside}: {one_line(error)}'
        yield Finding('torchvision', f'{found} (broken)', ERROR, problem, install_torchvision())
        return
    yield Finding('torchvision', version_of('torchvision'))


def run_torchvision() -> None:
    import torch
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5)


def install_torchvision() -> str:
    _, _, build = version_of('torch').partition('+')
    index = f' --index-url https://download.pytorch.org/whl/{build}' if build else ''
    return f'pip install {torch_with_torchvision()}{index}'


def torch_with_torchvision() -> str:
    """Requirements: this release of torch, and a torchvision for it.

    Releases went together, torch 2.1 with torchvision 0.16 for example, until torchvision 0.29,
    which is built for the stable ABI: it runs on torch 2.14 and all later ones.
    """
    major, minor = environment().release(version_of('torch'))
    torchvision = '>=0.29' if (major, minor) >= (2, 14) else f'==0.{minor + 15}.*'
    return f"'torch=={major}.{minor}.*' 'torchvision{torchvision}'"


# Packages that are imported -------------------------------------------------------------------


def families() -> Iterator[Finding]:
    """Which of the two families of mm packages is installed."""
    checks = environment()
    both = {"OpenMMLab's": checks.OPENMMLAB, 'onedl': checks.ONEDL}
    found = ' and '.join(name for name, packages in both.items() if checks.installed(packages))
    problem = checks.problems().get('mm')
    if problem:
        yield Finding('mm packages', found or 'none', ERROR, *problem)
    else:
        yield Finding('mm packages', found)


def opencv() -> Iterator[Finding]:
    if find_spec('cv2') is None:
        yield from library('cv2')
        return
    import cv2
    import numpy

    cv2.resize(numpy.zeros((4, 4, 3), 'uint8'), (2, 2))
    variants = environment().installed(DISTRIBUTIONS['cv2'])
    kind = 'headless' if getattr(cv2.version, 'headless', False) else 'with windows'
    yield Finding('cv2', f'{cv2.__version__}, {kind}, of {", ".join(variants)}')


def library(module: str) -> Iterator[Finding]:
    if find_spec(module) is not None:
        importlib.import_module('pycocotools.mask' if module == 'pycocotools' else module)
        pins = environment().installed(DISTRIBUTIONS.get(module, (module,)))
        yield Finding(module, ' '.join(pins))
    elif module != 'safetensors' and find_spec('mmengine') is None:
        yield Finding(module, 'comes with the mm packages', ABSENT)
    else:
        mend = advice(f"No module named '{module}'")
        yield Finding(module, 'not installed', ERROR, f'{module} is not installed.', mend)


def optional(module: str, purpose: str) -> Iterator[Finding]:
    if find_spec(module) is None:
        mend = f'pip install {DISTRIBUTIONS.get(module, (module,))[0]}'
        yield Finding(module, f'not installed, for {purpose}', ABSENT, '', mend)
    else:
        yield from library(module)


def coco_evaluation() -> Iterator[Finding]:
    """The onedl family's mmdet evaluates by faster_coco_eval, OpenMMLab's by pycocotools."""
    if find_spec('mmdet') is None:
        raise NotTried('needs mmdet')
    yield from library('pycocotools')
    if version_of('onedl-mmdetection'):
        yield from library('faster_coco_eval')


def extras() -> Iterator[Finding]:
    """The package's optional parts; the lists are its own."""
    if not INSTALLED:
        raise NotTried('needs gcvit_mm installed')
    wanted: dict[str, list[str]] = {}
    for line in requires('gcvit_mm') or []:
        match = re.match(r'([\w-]+)[^;]*;.*extra == .(\w+)', line)
        if match and match[2] not in ('mm', 'test'):
            wanted.setdefault(match[2], []).append(match[1])
    for extra, names in wanted.items():
        pins = environment().installed(tuple(names))
        missing = sorted({*names} - {pin.split('==')[0] for pin in pins})
        if missing:
            mend = f"pip install 'gcvit_mm[{extra}]'"
            yield Finding(extra, f'without {", ".join(missing)}', ABSENT, '', mend)
        else:
            yield Finding(extra, ' '.join(pins))


# OpenMMLab and the package --------------------------------------------------------------------


def framework(module: str, *needed: str) -> Iterator[Finding]:
    """One of the mm packages: whether pip's files are there, and its models can be imported."""
    if 'mm' in environment().problems():
        raise NotTried('needs one family of mm packages')
    pins = environment().installed(DISTRIBUTIONS[module])
    if not pins and find_spec(module) is None:
        yield absent_framework(module)
        return
    gone = [finding for pin in pins for finding in files_gone(module, pin)]
    if gone:
        yield from gone
        return
    need(*needed)
    importlib.import_module(module)
    if module in TASKS:
        importlib.import_module(f'{module}.models')
        importlib.import_module(f'{module}.datasets')
    yield Finding(module, ' '.join(pins))


def absent_framework(module: str) -> Finding:
    onedl = bool(environment().installed(environment().ONEDL))
    mend = f'pip install {DISTRIBUTIONS[module][-1 if onedl else 0]}'
    if module in TASKS:
        return Finding(module, f'not installed, for {TASKS[module]}', ABSENT, '', mend)
    return Finding(module, 'not installed', ERROR, f'{module} is not installed.', mend)


def files_gone(module: str, pin: str) -> Iterator[Finding]:
    """An uninstallation of the other family takes files that both have."""
    installed = distribution(pin.split('==')[0])
    # Not of `files`, which leaves out what is gone from Python 3.12 on.
    rows = csv.reader((installed.read_text('RECORD') or '').splitlines())
    own = [row[0] for row in rows if re.match(rf'{module}/.*\.py$', row[0])]
    gone = [file for file in own if not Path(str(installed.locate_file(file))).exists()]
    if gone:
        problem = f'{len(gone)} of {len(own)} files of {pin} are gone, {gone[0]} for example.'
        mend = f'pip install --force-reinstall --no-deps {pin}'
        yield Finding(module, f'{pin} (files gone)', ERROR, problem, mend)


def package() -> Iterator[Finding]:
    if not INSTALLED:
        problem = 'gcvit_mm is not installed for this Python.'
        families = environment().OPENMMLAB + environment().ONEDL
        extra = '' if environment().installed(families) else '[mm]'
        mend = f'pip install -e {shlex.quote(str(PACKAGE.parent) + extra)}'
        yield Finding('gcvit_mm', f'only in {PACKAGE}', ERROR, problem, mend)
    if environment().problems():
        raise NotTried('needs torch and one family of mm packages')
    need('torch', 'cv2', 'mmengine', 'mmcv', 'safetensors', 'tqdm')
    import gcvit_mm

    importlib.import_module('gcvit_mm.engine.setup')
    importlib.import_module('gcvit_mm.register')
    if INSTALLED:
        yield Finding('gcvit_mm', f'{gcvit_mm.__version__}, {Path(gcvit_mm.__file__).parent}')


def operations() -> Iterator[Finding]:
    need('gcvit_mm.models', 'cv2', 'mmcv')
    from gcvit_mm.compat.mmcv_ops import implementation

    try:
        import mmcv.ops  # noqa: F401 - whether it can be
    except ImportError as error:
        problem = f"mmcv's compiled operations do not work: {one_line(error)}"
        yield Finding('mmcv.ops', '(broken)', ERROR, problem, without_operations())
        return
    yield Finding('mmcv.ops', implementation().partition(': ')[2].partition(';')[0])


def without_operations() -> str:
    """Pure Python in place of what was compiled for another torch; ours stand in for it."""
    pin = environment().installed(DISTRIBUTIONS['mmcv'])[0]
    name, _, number = pin.partition('==')
    if name == 'onedl-mmcv':
        return f'MMCV_WITH_OPS=0 pip install --force-reinstall --no-deps --no-cache-dir {pin}'
    return f'pip uninstall -y mmcv\npip install mmcv-lite=={number}'


def operation(name: str, run: Callable[[str], None]) -> Iterator[Finding]:
    """Run an operation on each device; it raises where it does not run, or is wrong."""
    need('gcvit_mm.models', 'cv2', 'mmcv.ops')
    from gcvit_mm.compat.mmcv_ops import implementation

    if name != 'deformable attention' and 'compiled' not in implementation():
        try:
            run_torchvision()
        except Exception:  # which torchvision's own check reports
            raise NotTried('needs torchvision') from None
    for device in devices():
        run(device)
    yield Finding(name, f'runs on {", ".join(devices())}')


def devices() -> list[str]:
    import torch

    return ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']


def nms(device: str) -> None:
    import mmcv.ops
    import torch

    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 28, 28]], device=device)
    _, kept = mmcv.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7], device=device), 0.5)
    if kept.tolist() != [1, 2]:
        raise RuntimeError(f'nms keeps {kept.tolist()} on {device}, not [1, 2]')


def roi_align(device: str) -> None:
    import mmcv.ops
    import torch

    maps = torch.ones(1, 2, 8, 8, device=device, requires_grad=True)
    box = torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    out = mmcv.ops.roi_align(maps, box, (2, 2), 1.0, 0, 'avg', True)
    out.sum().backward()
    if out.shape != (1, 2, 2, 2) or abs(maps.grad.sum().item() - 8) > 1e-4:
        raise RuntimeError(f'roi_align is wrong on {device}')


def deformable_attention(device: str) -> None:
    import mmcv.ops
    import torch

    settings = dict(embed_dims=32, num_heads=2, num_levels=1, num_points=2)
    layer = mmcv.ops.MultiScaleDeformableAttention(**settings).to(device)
    cells = torch.ones(16, 1, 32, device=device, requires_grad=True)
    points = torch.full((1, 16, 1, 2), 0.5, device=device)
    shapes = torch.tensor([[4, 4]], device=device)
    start = torch.tensor([0], device=device)
    out = layer(cells, reference_points=points, spatial_shapes=shapes, level_start_index=start)
    out.sum().backward()
    if out.shape != cells.shape or not cells.grad.isfinite().all():
        raise RuntimeError(f'deformable attention is wrong on {device}')


def attention(impl: str) -> Iterator[Finding]:
    """One of the backbone's implementations, beside the readable one."""
    need('gcvit_mm.models')
    if impl == 'triton' and 'cuda' not in devices():
        yield Finding('attention: triton', 'needs a CUDA GPU', ABSENT)
        return
    where = ['cuda'] if impl == 'triton' else devices()
    told = []
    for device in where:
        expected, got = attend('eager', device), attend(impl, device)
        error = max(
            ((b - a).abs().max() / a.abs().max()).item()
            for a, b in zip(expected, got)  # noqa: B905
        )
        if not error < 0.01:
            raise RuntimeError(f'{impl} attention differs from eager on {device}: by {error:.2g}')
        told.append(device if impl == 'eager' else f'{device} (differs from eager by {error:.0e})')
    yield Finding(f'attention: {impl}', f'runs on {", ".join(told)}')


def attend(impl: str, device: str) -> tuple[Any, Any]:
    """Window attention on a map that windows do not divide, and the gradient of its input."""
    import torch

    from gcvit_mm.models.attention import WindowAttention
    from gcvit_mm.models.windows import relative_position_index

    torch.manual_seed(0)
    layer = WindowAttention(64, 2, 4, False, impl).to(device)
    x = torch.randn(2, 9, 10, 64).to(device).requires_grad_()
    out = layer(x, relative_position_index(4).to(device), None)
    out.square().sum().backward()
    return out.detach(), x.grad


def fused_kernels() -> Iterator[Finding]:
    """Which of PyTorch's kernels take a bias; 'sdpa' runs on one of them."""
    need('torch')
    import torch

    if find_spec('torch.nn.attention') is None:
        yield Finding('sdpa kernels', 'cannot be asked before torch 2.3', ABSENT)
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    told = []
    for device in devices():
        dtype = torch.float16 if device == 'cuda' else torch.float32
        q, bias = (torch.randn(1, 2, 16, n, device=device, dtype=dtype) for n in (32, 16))
        run = []
        for name in ('FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION', 'MATH'):
            backend = getattr(SDPBackend, name, None)
            try:
                with sdpa_kernel(backend), warnings.catch_warnings():
                    warnings.simplefilter('ignore')  # which say why one does not run
                    torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=bias)
                run.append(name.lower().partition('_')[0])
            except (RuntimeError, AssertionError):  # it does not run here
                continue
        told.append(f'{", ".join(run)} on {device}')
    yield Finding('sdpa kernels', f'with a bias: {"; ".join(told)}')


# Files ----------------------------------------------------------------------------------------


def zoo() -> Iterator[Finding]:
    for root in (PACKAGE / '.mim', PACKAGE.parent):
        count = len(list(root.glob('configs/*.py')))
        if count:
            yield Finding('zoo', f'{count} configs in {root / "configs"}')
            return
    problem = f'The package in {PACKAGE} has no configs.'
    yield Finding('zoo', 'none', ERROR, problem, 'pip install --force-reinstall --no-deps gcvit_mm')


def checkpoints() -> Iterator[Finding]:
    need('gcvit_mm.models')
    from gcvit_mm.weights.hub import default_folder, published

    folder, known = default_folder(), published().values()
    count = sum((folder / weights.file).is_file() for weights in known)
    yield Finding('checkpoints', f'{count} of {len(known)} published weights in {folder}')


def disk() -> Iterator[Finding]:
    free = shutil.disk_usage('.').free
    if free >= MIN_DISK:
        yield Finding('disk', f'{gib(free)} free in {os.getcwd()}')
        return
    problem = f'The disk of {os.getcwd()} has {gib(free)} left, where trainings write checkpoints.'
    yield Finding('disk', gib(free), WARNING, problem, 'make room, or use --work-dir')


def data() -> Iterator[Finding]:
    """Whether the folders are there that the ready configs read; one config of each data set."""
    need('gcvit_mm.models')
    from gcvit_mm.config import datasets_of, read_config
    from gcvit_mm.zoo import names

    for dataset, name in {name.rpartition('_')[2]: name for name in names()}.items():
        loader = read_config(name, import_modules=False).val_dataloader
        folder = os.path.normpath(datasets_of(loader)[0].data_root)
        there = os.path.isdir(folder)
        found = folder if there else f'not here: {folder}'
        yield Finding(f'data: {dataset}', found, OK if there else ABSENT)


# The report -----------------------------------------------------------------------------------

SECTIONS: dict[str, dict[str, Callable[[], Iterator[Finding]]]] = {
    'Machine': {
        'Python': python,
        'system': system,
        'CPU': processor,
        'memory': memory,
        'shared memory': shared_memory,
        'NVIDIA driver': driver,
    },
    'PyTorch': {
        'torch': torch_itself,
        'numpy': arrays,
        'GPU': gpus,
        'torchvision': torchvision,
        'fused AdamW': fused_adamw,
        'sdpa kernels': fused_kernels,
    },
    'Packages': {
        'mm packages': families,
        'cv2': opencv,
        **{name: partial(library, name) for name in LIBRARIES},
        'pycocotools': coco_evaluation,
        **{name: partial(optional, name, purpose) for name, purpose in OPTIONAL.items()},
    },
    'Models': {
        'mmengine': partial(framework, 'mmengine'),
        'mmcv': partial(framework, 'mmcv', 'torch', 'cv2', 'mmengine'),
        'gcvit_mm': package,
        'mmcv.ops': operations,
        'nms': partial(operation, 'nms', nms),
        'roi_align': partial(operation, 'roi_align', roi_align),
        'deformable attention': partial(operation, 'deformable attention', deformable_attention),
        **{f'attention: {impl}': partial(attention, impl) for impl in ('eager', 'sdpa', 'triton')},
        'mmdet': partial(framework, 'mmdet', 'gcvit_mm.models', 'mmcv.ops', 'pycocotools'),
        'mmseg': partial(framework, 'mmseg', 'gcvit_mm.models', 'mmcv.ops'),
        'mmpretrain': partial(framework, 'mmpretrain', 'gcvit_mm.models', 'mmcv', 'torchvision'),
    },
    'Extras': {'extras': extras},
    'Files': {'zoo': zoo, 'disk': disk, 'checkpoints': checkpoints, 'data': data},
}


def print_json(found: dict[str, list[Finding]], fit: bool) -> None:
    findings = [
        {'section': section, **finding._asdict()}
        for section, findings in found.items()
        for finding in findings
    ]
    print(json.dumps({'ok': fit, 'findings': findings}, indent=1))


def print_table(found: dict[str, list[Finding]]) -> None:
    """By rich where it is there, as plain columns otherwise."""
    rows = [
        (section if not number else '', finding.name, finding.state, cell(finding))
        for section, findings in found.items()
        for number, finding in enumerate(findings)
    ]
    try:
        print_rich(rows)
    except Exception:  # rich may be missing, or as broken as anything
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for section, name, state, text in rows:
            print(f'{section:<{widths[0]}}  {name:<{widths[1]}}  {MARKS[state][0]:<2}  {text}')


def cell(finding: Finding) -> str:
    hint = finding.state == ABSENT and finding.mend
    return f'{finding.found}: {finding.mend}' if hint else finding.found


def print_rich(rows: list[tuple[str, str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(overflow='fold')
    for section, name, state, text in rows:
        mark, colour = MARKS[state]
        table.add_row(Text(section, 'bold'), name, Text(mark, colour), Text(text))
    console = Console(highlight=False)
    if not console.is_terminal and 'COLUMNS' not in os.environ:
        console.width = 10_000  # in files, each finding is to be on one line
    with console.capture() as capture:
        console.print(table)
    print('\n'.join(line.rstrip() for line in capture.get().splitlines()))


def print_problems(found: dict[str, list[Finding]]) -> None:
    """Problems that one thing mends stand together above it."""
    findings = [finding for findings in found.values() for finding in findings]
    for state in (ERROR, WARNING):
        by_mend: dict[str, list[str]] = {}
        for finding in findings:
            if finding.state == state:
                by_mend.setdefault(finding.mend, []).append(finding.problem)
        for mend, problems in by_mend.items():
            print()
            for problem in problems:
                print(f'{state}: {problem}')
            for line in mend.splitlines():
                print(f'  {line}')
    counts = {state: sum(f.state == state for f in findings) for state in (ERROR, WARNING)}
    summary = ', '.join(f'{n} {state}{"s" * (n != 1)}' for state, n in counts.items())
    print(f'\n{summary}')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)

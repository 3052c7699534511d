"""Checks that required packages are installed and compatible, before their first use.

They cannot be dependencies: ``mmengine`` comes either from OpenMMLab's packages or from the onedl
packages. Both install modules of equal names, so requiring one family would overwrite the other.
"""

import re
import sys
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import FrameType
from typing import Any, NamedTuple

from ..zoo import CONFIGS

OPENMMLAB = ('mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'mmpretrain')
ONEDL = (
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
    'onedl-mmpretrain',
)
MIN_TORCH = (2, 1)
# Vulnerabilities of torch's loader, and the first release without each.
LOADER_CVES = {'CVE-2025-32434': (2, 6), 'CVE-2026-24747': (2, 10)}


class Problem(NamedTuple):
    """A problem that prevents importing the package, and its fix, with indented commands."""

    what: str
    fix: str


@cache
def check() -> None:
    """Check the environment; if it is good, only once.

    Raises:
        ImportError: mmengine or torch is missing, torch is older than 2.1, or both families of
            OpenMMLab packages are installed over each other. The message tells how to fix it.
    """
    for problem in problems().values():
        raise ImportError(f'{problem.what}\n{problem.fix}')
    torch = version('torch')
    cves = loader_cves(torch)
    if cves:
        warnings.warn(
            f'With torch {torch}, loading a hostile .pth file can run code, even with '
            f'weights_only=True ({", ".join(cves)}; fixed in torch 2.10). '
            'Load only .pth files that you trust; .safetensors files are not affected.',
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """The ``stacklevel``, for the calling function, of the line that uses gcvit_mm."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and _module(frame).split('.')[0] in ('gcvit_mm', 'importlib'):
        frame = frame.f_back
        # The warnings module does not count frames of importlib.
        level += not _module(frame).startswith('importlib._bootstrap')
    return level


def _module(frame: FrameType) -> str:
    return frame.f_globals.get('__name__', '')


def problems() -> dict[str, Problem]:
    """All problems for which ``check`` would raise, by 'mm' or 'torch', without importing them."""
    checks = {'mm': _mm_problem(), 'torch': _torch_problem()}
    return {name: problem for name, problem in checks.items() if problem is not None}


def loader_cves(torch_version: str) -> list[str]:
    """The known vulnerabilities of the loader in a release of torch."""
    return [cve for cve, fixed in LOADER_CVES.items() if release(torch_version) < fixed]


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version of torch: (2, 14) for '2.14.1+cu130'."""
    match = re.match(r'(\d+)\.(\d+)', version)
    return tuple(map(int, match.groups())) if match else MIN_TORCH


def _mm_problem() -> Problem | None:
    openmmlab, onedl = installed(OPENMMLAB), installed(ONEDL)
    if openmmlab and onedl:
        return Problem(
            "OpenMMLab's and the onedl packages are installed over each other:\n"
            f'  {" ".join(openmmlab + onedl)}\n'
            'Both put their files into the same folders, so one has overwritten the other.',
            'Remove both:\n'
            f'  {_uninstall(openmmlab + onedl)}\n'
            'and install one again, either\n'
            f'  pip install {" ".join(onedl)}\n'
            'or\n'
            f'  pip install {" ".join(openmmlab)}',
        )
    spec = find_spec('mmengine')
    # A namespace package, without origin, is a folder that remained after uninstalling.
    if spec is not None and spec.origin is not None:
        return None
    pins = openmmlab + onedl
    if any('mmengine==' in pin for pin in pins):
        return Problem(
            'mmengine is listed as installed but its files are gone, as when another package '
            'that provided them is uninstalled.',
            f'Install the packages again:\n  {_uninstall(pins)}\n  pip install {" ".join(pins)}',
        )
    return Problem(
        'gcvit_mm needs mmengine, which is not installed.',
        'Install the onedl packages:\n'
        "  pip install 'gcvit_mm[mm]'\n"
        "or, in an environment with OpenMMLab's own packages:\n"
        '  pip install mmengine',
    )


def _torch_problem() -> Problem | None:
    try:
        torch = version('torch')
    except PackageNotFoundError:
        return Problem('gcvit_mm needs torch, which is not installed.', _GET_TORCH)
    if release(torch) < MIN_TORCH:
        return Problem(f'gcvit_mm needs torch 2.1 or newer, and this is {torch}.', _GET_TORCH)
    return None


_GET_TORCH = (
    'Install the newest:\n'
    '  pip install torch torchvision\n'
    "or, for OpenMMLab's own mmcv 2.1:\n"
    '  pip install torch==2.1.2 torchvision==0.16.2'
)


def let_mmengine_find_mmseg() -> None:
    """Make ``_base_ = 'mmseg::...'`` work with the onedl packages.

    mmengine looks for the distribution mmsegmentation, but the one of onedl is
    onedl-mmsegmentation. Looking for the module mmseg finds it too.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    if installed(('onedl-mmsegmentation',)):
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def let_mmengine_find_configs() -> None:
    """Make ``_base_ = 'gcvit_mm::...'`` work in any folder, installed and in a checkout."""
    from mmengine.config import Config

    find: Any = Config._get_cfg_path

    def find_own(name: str, filename: str) -> tuple[str, str | None]:
        package, _, own = name.partition('::')
        if package != 'gcvit_mm':
            return find(name, filename)
        if (CONFIGS / own).is_file():
            return str(CONFIGS / own), None
        raise FileNotFoundError(f'{name} does not exist: {CONFIGS} has no {own}')

    Config._get_cfg_path = staticmethod(find_own)


def installed(names: tuple[str, ...]) -> list[str]:
    """The installed ones of some distributions, as pins."""
    pins = []
    for name in names:
        try:
            pins.append(f'{name}=={version(name)}')
        except PackageNotFoundError:
            continue
    return pins


def _uninstall(pins: list[str]) -> str:
    return 'pip uninstall -y ' + ' '.join(pin.split('==')[0] for pin in pins)

"""Whether the packages that this one stands on are there and fit; asked at each import.

No package can require them: ``mmengine`` comes from OpenMMLab's packages or from the onedl ones,
which install the same modules, so that requiring one family would overwrite the other.
"""

import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

OPENMMLAB = ('mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'mmpretrain')
ONEDL = (
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
    'onedl-mmpretrain',
)
MIN_TORCH = (2, 1)
# The vulnerabilities of torch's loader and the first release without each.
LOADER_CVES = {'CVE-2025-32434': (2, 6), 'CVE-2026-24747': (2, 10)}


def check() -> None:
    """Says at import what is missing, too old or broken, and how to mend it.

    Raises:
        ImportError: If mmengine or torch is missing, if torch is older than 2.1, or if both
            families of mm packages are installed over each other.
    """
    _check_mm()
    _check_torch()


def _check_mm() -> None:
    openmmlab, onedl = _installed(OPENMMLAB), _installed(ONEDL)
    if openmmlab and onedl:
        raise ImportError(
            "OpenMMLab's and the onedl packages are installed over each other:\n"
            f'  {" ".join(openmmlab + onedl)}\n'
            'Both put their files into the same folders, so one has overwritten the other. '
            'Remove both:\n'
            f'  {_uninstall(openmmlab + onedl)}\n'
            'and install one again, either\n'
            f'  pip install {" ".join(onedl)}\n'
            'or\n'
            f'  pip install {" ".join(openmmlab)}'
        )
    spec = find_spec('mmengine')
    # A namespace package (no origin) is a folder that an uninstallation left behind.
    if spec is not None and spec.origin is not None:
        return
    listed = openmmlab + onedl
    if any('mmengine==' in pin for pin in listed):
        raise ImportError(
            'mmengine is listed as installed but its files are gone, as when another package '
            'that provided them is uninstalled. Install the packages again:\n'
            f'  {_uninstall(listed)}\n'
            f'  pip install {" ".join(listed)}'
        )
    raise ImportError(
        'gcvit_mm needs mmengine, which is not installed. Install the onedl packages:\n'
        "  pip install 'gcvit_mm[mm]'\n"
        "or, in an environment with OpenMMLab's own packages:\n"
        '  pip install mmengine'
    )


def _check_torch() -> None:
    try:
        found = version('torch')
    except PackageNotFoundError:
        raise ImportError(f'gcvit_mm needs torch, which is not installed. {_GET_TORCH}') from None
    match = re.match(r'(\d+)\.(\d+)', found)
    release = tuple(map(int, match.groups())) if match else MIN_TORCH
    if release < MIN_TORCH:
        raise ImportError(f'gcvit_mm needs torch 2.1 or newer, and this is {found}. {_GET_TORCH}')
    cves = [cve for cve, fixed in LOADER_CVES.items() if release < fixed]
    if cves:
        warnings.warn(
            f'With torch {found}, loading a hostile .pth file can run code, even with '
            f'weights_only=True ({", ".join(cves)}; mended in torch 2.10). '
            'Load only .pth files that you trust; .safetensors files are not affected.',
            # The line that imports gcvit_mm: above this function, check() and gcvit_mm itself.
            stacklevel=4,
        )


_GET_TORCH = (
    'Install the newest:\n'
    '  pip install torch torchvision\n'
    "or, for OpenMMLab's own mmcv 2.1:\n"
    '  pip install torch==2.1.2 torchvision==0.16.2'
)


def let_mmengine_find_mmseg() -> None:
    """Make ``_base_ = 'mmseg::...'`` work with the onedl packages.

    mmengine looks for mmseg by the distribution's name, mmsegmentation, but there it is
    onedl-mmsegmentation; the module's name serves as well.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    if _installed(('onedl-mmsegmentation',)):
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def _installed(names: tuple[str, ...]) -> list[str]:
    pins = []
    for name in names:
        try:
            pins.append(f'{name}=={version(name)}')
        except PackageNotFoundError:
            continue
    return pins


def _uninstall(pins: list[str]) -> str:
    return 'pip uninstall -y ' + ' '.join(pin.split('==')[0] for pin in pins)

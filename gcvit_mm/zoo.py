"""Lookup of the configs of this package by name, such as ``mask_rcnn_gcvit_tiny_coco``."""

import difflib
import os
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).parent
# An installed package contains configs and tools; a source checkout has them beside the package.
ROOT = next(root for root in (_PACKAGE / '.mim', _PACKAGE.parent) if (root / 'configs').is_dir())
CONFIGS, TOOLS = ROOT / 'configs', ROOT / 'tools'


def names() -> list[str]:
    """The names of the configs of this package."""
    return sorted(path.stem for path in CONFIGS.glob('*.py'))


def config_file(config: str | os.PathLike) -> str:
    """The path of a config file, which is returned unchanged, or of a config of this package."""
    config = os.fspath(config)
    if os.path.isfile(config):
        return config
    known = names()
    if config in known:
        return str(CONFIGS / f'{config}.py')
    near = difflib.get_close_matches(Path(config).stem, known, n=3, cutoff=0.7)
    hint = f'did you mean {" or ".join(near)}?' if near else f'or one of {", ".join(known)}'
    raise UserError(f'config {config} does not exist: pass a file, {hint}')

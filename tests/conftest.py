"""A tiny data set and a detector trained on it, which tests only read."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import NANO, ROOT, TRAIN_IMAGES, VAL_IMAGES, on, succeed

from gcvit_mm.datasets.shapes import make_shapes

sys.path.append(str(ROOT / 'tools'))  # as for the scripts there, which some tests run in-process


@pytest.fixture(scope='session')
def tiny_shapes(tmp_path_factory) -> Path:
    """Shapes in a folder with a space in its name."""
    root = tmp_path_factory.mktemp('data') / 'tiny shapes'
    return make_shapes(root, train=TRAIN_IMAGES, val=VAL_IMAGES, size=64)


@pytest.fixture(scope='session')
def trained(tiny_shapes, tmp_path_factory) -> SimpleNamespace:
    """One epoch of the nano config: what it wrote, its work directory and its checkpoint."""
    work_dir = tmp_path_factory.mktemp('trained')
    each_step = 'default_hooks.logger.interval=1'
    output = succeed('train.py', NANO, '--work-dir', work_dir, *on(tiny_shapes, each_step))
    return SimpleNamespace(
        output=output, work_dir=work_dir, checkpoint=work_dir / 'epoch_1.pth', data=tiny_shapes
    )

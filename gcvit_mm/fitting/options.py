"""The options of a fit, for its command and for Python; only the standard library is imported."""

import os
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..choices import LABEL_FORMATS
from ..errors import UserError

SIZES = ('nano', 'xxtiny', 'tiny')
HEADS = {
    'detection': ('faster_rcnn', 'retinanet'),
    'instances': ('mask_rcnn',),
    'segmentation': ('upernet',),
    'classification': ('classifier',),
}
"""Heads of each task; the first is the default."""
WEIGHTS = ('scratch', 'imagenet')


def _option(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={'help': help, **more})


@dataclass
class Options:
    """Decisions of the user; None leaves a decision to the fit."""

    minutes: float | None = _option(None, 'time for the training', type=float)
    task: str | None = _option(None, 'default: what the labels are for', choices=tuple(HEADS))
    format: str | None = _option(None, 'default: it is recognised', choices=LABEL_FORMATS)
    model: str | None = _option(None, 'size of the model', choices=SIZES)
    head: str | None = _option(
        None, 'head of the model', choices=tuple(head for heads in HEADS.values() for head in heads)
    )
    weights: str | None = _option(
        None, 'scratch, imagenet or a checkpoint to start from', flag='--from'
    )
    size: int | None = _option(None, 'longest side of an image in pixels', type=int)
    tile: int | None = _option(None, 'side of the tiles that images are cut into', type=int)
    flips: str | None = _option(
        None, 'flip images left to right, or also upside down', choices=('horizontal', 'all')
    )
    anchors: int | None = _option(None, 'side of the smallest anchor in pixels', type=int)
    batch: int | None = _option(None, 'images per process in a step', type=int)
    lr: float | None = _option(None, 'learning rate', type=float)
    epochs: int | None = _option(None, 'length of the training', type=int)
    val: float = _option(0.2, 'share of validation images, if the data have no split', type=float)
    seed: int = _option(0, 'seed of the split and of the training', type=int)
    gpus: int | None = _option(None, 'GPUs to train on; default: all', type=int)

    def check(self) -> None:
        """Check the values.

        Raises:
            UserError: A value is not one of its choices, or a number is out of range.
        """
        for each in fields(self):
            value, flag = getattr(self, each.name), flag_of(each)
            choices = each.metadata.get('choices')
            if value is None:
                continue
            if choices and value not in choices:
                raise UserError(f'{flag} {value}: choose one of {", ".join(choices)}')
            kind = each.metadata.get('type')
            least = 0 if each.name in ('seed', 'gpus') else 1e-9
            most = 1 if each.name == 'val' else 2**31
            # An integer is a number, too.
            kinds = (int,) if kind is int else (int, float)
            if kind and not (isinstance(value, kinds) and least <= value < most):
                raise UserError(f'{flag} {value}: pass a number above 0')
        if self.minutes and self.epochs:
            raise UserError('--minutes and --epochs both set the length: pass one of them')
        if self.weights and self.weights not in WEIGHTS:
            if not os.path.isfile(self.weights):
                raise UserError(f'--from {self.weights}: pass scratch, imagenet, or a checkpoint')
            self.weights = os.path.abspath(self.weights)

    def command(self, folder: Path, work_dir: Path) -> str:
        """The command line with these options."""
        words = ['gcvit-mm', 'fit', str(folder), '--work-dir', str(work_dir)]
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                words += [flag_of(each), str(value)]
        return shlex.join(words)


def flag_of(option: Any) -> str:
    """The argument of the command for a field of ``Options``."""
    return option.metadata.get('flag', f'--{option.name}')

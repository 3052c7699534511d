"""Preparing a config for mmengine's runner, for training and testing."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLevelNamesMapping
from pathlib import Path
from textwrap import shorten
from traceback import format_exc, walk_tb
from types import FrameType

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS
from mmengine.runner import BaseLoop, TestLoop, ValLoop

from ..cli import BAD_IMAGES, explained
from ..config import datasets_of, default_scope, dicts_of, find_class, transforms_of
from ..datasets.check.settings import WORKER_KEYS
from ..datasets.collate import prepare_collating
from ..datasets.load_label_map import prepare_maps
from ..errors import UserError
from ..models.precision import use_tf32
from ..weights.mm_loaders import register_loaders
from .deterministic import use_deterministic_operators
from .distributed import init_processes

LOADER_TIMEOUT = 600
"""Seconds to wait for a batch before the data loader raises an error."""
HOOKS = (
    'RunSummaryHook',
    'DataTimeHook',
    'ProgressBarHook',
    'CheckpointGuardHook',
    'EvaluatorHook',
    'PreemptionHook',
)
"""Hooks that every run has."""
_LEAVE_OUT = 'remove it, or set with_mask=False to train boxes only'
WITHOUT_MASKS = {
    'Mosaic': 'use CachedMosaic',
    'MixUp': 'use CachedMixUp',
    'RandomAffine': _LEAVE_OUT,
    'RandomCenterCropPad': _LEAVE_OUT,
    'RandomShift': _LEAVE_OUT,
}
"""Transforms of mmdet that drop masks or do not move them, and what to do instead."""
WITHOUT_POLYGONS = ('Albu', 'CopyPaste', 'Expand', 'RandomErasing')
NUMBERS = (
    'score_thr',
    'mask_thr_binary',
    'iou_threshold',
    'nms_pre',
    'max_per_img',
    'min_bbox_size',
    'num',
    'pos_fraction',
)
"""Settings of mmdet's ``train_cfg`` and ``test_cfg`` that are numbers wherever they are."""
UNSAVED = ('CachedMosaic', 'CachedMixUp', 'BatchSyncRandomResize')
"""Types of mmdet with a state that depends on earlier steps and is not in checkpoints."""
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def prepare(cfg: Config, *, skip_bad_images: int = 0) -> None:
    """Prepare a run: register the checkpoint loaders, add the hooks, initialise the processes."""
    register_loaders()
    use_tf32()
    if (cfg.get('randomness') or {}).get('deterministic'):
        use_deterministic_operators()
    _check_values(cfg)
    _check_transforms(cfg)
    # Configs from elsewhere lack these hooks; those of older work directories have them already.
    present = {hook.get('type') for hook in (cfg.get('default_hooks') or {}).values() if hook}
    others = [hook for hook in cfg.custom_hooks if hook.get('type') not in HOOKS]
    cfg.custom_hooks = others + [dict(type=name) for name in HOOKS if name not in present]
    if sys.platform == 'darwin':  # mmengine forks by default, but Metal fails in forked processes
        env = cfg.get('env_cfg', {})
        cfg.env_cfg = {**env, 'mp_cfg': {'mp_start_method': 'spawn', **env.get('mp_cfg', {})}}
    for name in LOADERS:
        if cfg.get(name):
            cfg[name].setdefault('worker_init_fn', dict(type='init_worker'))
            cfg[name].setdefault('pin_memory', torch.cuda.is_available())
            if cfg[name].get('num_workers'):
                cfg[name].setdefault('timeout', LOADER_TIMEOUT)
            else:
                for key in WORKER_KEYS:
                    cfg[name].pop(key, None)
            prepare_maps(cfg, name)
            prepare_collating(cfg, name)
    if skip_bad_images:
        _skip_bad_images(cfg, skip_bad_images)
    init_processes(cfg)


@contextmanager
def wrong_settings(cfg: Config) -> Iterator[None]:
    """Report errors in one line within a ``with`` block until the end of the first step or image.

    Wrong settings are the usual cause. The log has the traceback.
    """
    try:
        yield
    except Exception as error:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        known = isinstance(error, OSError | ImportError) or explained(error)
        if known or any(map(_is_later, frames)):
            raise
        print_log(format_exc(), logger='current', level=logging.ERROR)
        message = f'{type(error).__name__}: {error}'
        if ': Caught ' in message:  # of a data loader's worker, with its traceback
            message = message.rstrip().splitlines()[-1]
        reason = ', '.join([message, *getattr(error, '__notes__', [])])
        reason = shorten(reason, 400, placeholder=' ...')
        code = frames[-1].f_code
        raise UserError(
            f'config {cfg.filename} with its options: the run cannot be set up: {reason} (in '
            f'{code.co_name} of {Path(code.co_filename).name})'
        ) from error


def _is_later(frame: FrameType) -> bool:
    """Whether a frame is that of a loop after its first step or image."""
    loop = frame.f_locals.get('self')
    if not isinstance(loop, BaseLoop) or frame.f_code.co_name != 'run':
        return False
    if isinstance(loop, ValLoop | TestLoop):
        return frame.f_locals.get('idx', 0) > 0
    return getattr(loop, 'steps', 1) > 0


def _check_values(cfg: Config) -> None:
    """Check settings whose errors mmengine does not name."""
    seed, level = (cfg.get('randomness') or {}).get('seed'), cfg.get('log_level', 'INFO')
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise UserError(f'randomness.seed={seed}: pass an integer from 0 to {2**32 - 1}')
    levels = getLevelNamesMapping()
    if level not in levels and not isinstance(level, int):
        raise UserError(f'log_level={level}: choose one of {", ".join(levels)}')
    for part in ('train_cfg', 'test_cfg'):  # else they fail in a step, or after the first epoch
        for _, entry in dicts_of((cfg.get('model') or {}).get(part)):
            for key, value in entry.items():
                kinds, what = (int | float, 'number') if key in NUMBERS else (dict, 'dictionary')
                if key in (*NUMBERS, 'nms') and not isinstance(value, kinds | None):
                    raise UserError(f'model.{part}: {key}={value!r}: pass a {what}')
    kind = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type', 'SGD')
    with default_scope(cfg):
        if find_class(OPTIMIZERS, kind) is None:
            raise UserError(f'optim_wrapper.optimizer.type={kind} is not a registered optimizer')


def _check_transforms(cfg: Config) -> None:
    """Refuse transforms that drop or do not move masks."""
    steps = [step for _, step in dicts_of(cfg.get('train_dataloader'))]
    loads = [step for step in steps if step.get('with_mask')]
    polygons = any(not step.get('poly2mask', True) for step in loads)
    for step in steps if loads else ():
        name = _type_of(step)
        if name in WITHOUT_MASKS or (polygons and name in WITHOUT_POLYGONS):
            cure = WITHOUT_MASKS.get(name, 'set poly2mask=True in LoadAnnotations')
            kind = 'masks' if name in WITHOUT_MASKS else 'masks of polygons'
            raise UserError(f'train_dataloader: {name} cannot transform {kind}: {cure}')


def unsaved_states(cfg: Config) -> Iterator[str]:
    """Yield a warning if a type in the config keeps a resumed training from being exact."""
    types = {
        _type_of(entry)
        for key in ('train_dataloader', 'model')
        for _, entry in dicts_of(cfg.get(key))
    }
    if names := ', '.join(sorted(types.intersection(UNSAVED))):
        yield (
            f'{names}: checkpoints do not have what this keeps of earlier steps, so a resumed '
            'training goes on with other random choices'
        )


def _type_of(entry: dict) -> str:
    return getattr(entry.get('type'), '__name__', str(entry.get('type'))).split('.')[-1]


def _skip_bad_images(cfg: Config, maximum: int) -> None:
    os.makedirs(cfg.work_dir, exist_ok=True)
    path = os.path.join(cfg.work_dir, BAD_IMAGES)
    Path(path).unlink(missing_ok=True)
    loaders = []
    for name in LOADERS:
        for dataset in datasets_of(cfg.get(name)):
            pipeline = dataset.get('pipeline', [])
            for step in (
                *transforms_of(pipeline, 'LoadWholeImage'),
                *transforms_of(pipeline, 'LoadWholeMap'),
            ):
                step.update(
                    # Another image would count twice in an evaluation.
                    on_bad='skip' if name == 'train_dataloader' else 'blank',
                    bad_images_file=path,
                    max_bad_images=maximum,
                )
                if step.type == 'LoadWholeImage':
                    loaders.append(step)
    if not loaders:
        raise UserError('--skip-bad-images: use LoadWholeImage in the pipelines of the config')


def report_bad_images(cfg: Config) -> None:
    """Print how many images were skipped, at the end of a run."""
    path = Path(cfg.work_dir) / BAD_IMAGES
    if is_main_process() and path.is_file():
        count = len(set(path.read_text().splitlines()))
        print(f'{count} bad image(s) skipped, listed in {path}')

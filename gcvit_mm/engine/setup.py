"""Preparing a config for mmengine's runner, for training and testing."""

import os
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..cli import BAD_IMAGES
from ..config import datasets_of, transforms_of
from ..datasets.check.settings import WORKER_KEYS
from ..datasets.collate import prepare_collating
from ..datasets.load_label_map import prepare_maps
from ..errors import UserError
from ..weights.mm_loaders import register_loaders
from .distributed import init_processes

LOADER_TIMEOUT = 600
"""Seconds to wait for a batch before the data loader raises an error."""
HOOKS = (
    'RunSummaryHook',
    'DataTimeHook',
    'ProgressBarHook',
    'CheckpointGuardHook',
    'PreemptionHook',
)
"""Hooks that every run has."""
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def prepare(cfg: Config, *, skip_bad_images: int = 0) -> None:
    """Prepare a run: register the checkpoint loaders, add the hooks, initialise the processes.

    Raises:
        UserError: There are fewer GPUs than processes.
    """
    register_loaders()
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

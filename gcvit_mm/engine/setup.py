"""From a config to what mmengine's runner takes: shared by trainings and tests."""

import os
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..cli import BAD_IMAGES
from ..config import datasets_of, transforms_of
from ..errors import UserError
from ..weights.mm_loaders import register_loaders
from .distributed import init_processes

LOADER_TIMEOUT = 600
"""Seconds after which a loader that gives no batch is an error."""
HOOKS = (
    'RunSummaryHook',
    'DataTimeHook',
    'ProgressBarHook',
    'CheckpointGuardHook',
    'PreemptionHook',
)
"""What every run of ours has."""
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def prepare(cfg: Config, *, skip_bad_images: int = 0) -> None:
    """Prepare a config for a run: safe reading of checkpoints, our hooks, connected processes.

    Raises:
        UserError: There are fewer GPUs than processes.
    """
    register_loaders()
    # Configs of other people lack our hooks, and older work folders have them here.
    present = {hook.get('type') for hook in (cfg.get('default_hooks') or {}).values() if hook}
    others = [hook for hook in cfg.custom_hooks if hook.get('type') not in HOOKS]
    cfg.custom_hooks = others + [dict(type=name) for name in HOOKS if name not in present]
    if sys.platform == 'darwin':  # where mmengine forks by default, which Metal does not survive
        env = cfg.get('env_cfg', {})
        cfg.env_cfg = {**env, 'mp_cfg': {'mp_start_method': 'spawn', **env.get('mp_cfg', {})}}
    for name in LOADERS:
        if cfg.get(name):
            cfg[name].setdefault('worker_init_fn', dict(type='init_worker'))
            if cfg[name].get('num_workers'):
                cfg[name].setdefault('timeout', LOADER_TIMEOUT)
    if skip_bad_images:
        _skip_bad_images(cfg, skip_bad_images)
    init_processes(cfg)


def _skip_bad_images(cfg: Config, most: int) -> None:
    os.makedirs(cfg.work_dir, exist_ok=True)
    path = os.path.join(cfg.work_dir, BAD_IMAGES)
    Path(path).unlink(missing_ok=True)
    loaders = []
    for name in LOADERS:
        for dataset in datasets_of(cfg.get(name)):
            for step in transforms_of(dataset.get('pipeline', []), 'LoadWholeImage'):
                step.update(
                    on_bad='blank' if dataset.get('test_mode') else 'skip',
                    bad_images_file=path,
                    max_bad_images=most,
                )
                loaders.append(step)
    if not loaders:
        raise UserError('--skip-bad-images: no pipeline of this config loads by LoadWholeImage')


def report_bad_images(cfg: Config) -> None:
    """Say at the end of a run how many images were skipped."""
    path = Path(cfg.work_dir) / BAD_IMAGES
    if is_main_process() and path.is_file():
        count = len(set(path.read_text().splitlines()))
        print(f'{count} bad image(s) skipped, listed in {path}')

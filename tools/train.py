"""Train a model of any task from a config."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import _package  # noqa: F401

from gcvit_mm.choices import TRACKERS
from gcvit_mm.cli import add_config_arguments, add_run_arguments, locked, run
from gcvit_mm.errors import UserError, printable

if TYPE_CHECKING:
    from mmengine.config import Config

LOADERS = ('train_dataloader', 'val_dataloader')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: bfloat16 if the GPU supports it'
    )
    parser.add_argument(
        '--shard',
        action='store_true',
        help='shard parameters, gradients and optimizer state over the processes (FSDP)',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from the batch size of the recipe to that of this run',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint, by default the newest intact one in the work directory',
    )
    parser.add_argument(
        '--track',
        action='append',
        choices=TRACKERS,
        default=[],
        help='also log curves and config with this tool; can be repeated',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from gcvit_mm.run_config import load_run_config
    from gcvit_mm.work_dir import check_untrained, checkpoint_folder

    cfg = load_run_config(args, LOADERS)
    restarts = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    folders = [cfg.work_dir, checkpoint_folder(cfg)]
    with locked(*(folder for folder in folders if '://' not in folder)):
        if not (args.resume or restarts or cfg.get('resume')):
            check_untrained(cfg)
        from gcvit_mm.engine.setup import report_bad_images, wrong_settings

        with wrong_settings(cfg):
            train(cfg, args, restarts)
        say_what_is_next(cfg, args.config)
        if args.skip_bad_images:
            report_bad_images(cfg)


def train(cfg: Config, args: argparse.Namespace, restarts: int) -> None:
    from mmengine.runner import Runner

    from gcvit_mm.datasets.preflight import check_data
    from gcvit_mm.engine.fsdp import ShardedRunner
    from gcvit_mm.engine.lr_scaling import scale_learning_rate
    from gcvit_mm.engine.setup import prepare
    from gcvit_mm.engine.trackers import TrackHook

    if args.amp:
        use_amp(cfg)
    prepare(cfg, skip_bad_images=args.skip_bad_images)
    if args.auto_scale_lr:
        scale_learning_rate(cfg)
    if args.resume:
        resume(cfg, args.resume)
    elif restarts:
        resume(cfg, 'auto', since=os.environ.get('GCVIT_MM_STARTED', ''))
    trackers = TrackHook(args.track, resume=cfg.get('resume', False))
    check_data(cfg, LOADERS, keep=True)
    runner = (ShardedRunner if args.shard else Runner).from_cfg(cfg)
    if args.track:
        runner.register_hook(trackers)
    runner.train()


def say_what_is_next(cfg: Config, config: str) -> None:
    """Name the checkpoint to use, and the commands that evaluate and report it."""
    from mmengine.dist import is_main_process

    from gcvit_mm.work_dir import best_checkpoint, checkpoint_folder

    if not is_main_process() or not any(Path(checkpoint_folder(cfg)).glob('*.pth')):
        return
    file = best_checkpoint(cfg)
    kind = 'best' if Path(file).name.startswith('best_') else 'last'
    test, report = (
        shlex.join(['gcvit-mm', *words])
        for words in (('test', config, file), ('report', cfg.work_dir))
    )
    print(f'{kind} checkpoint: {file}', f'evaluate: {test}', f'report: {report}', sep='\n')


def resume(cfg: Config, checkpoint: str, since: str = '') -> None:
    """Configure a run to resume from a checkpoint.

    Args:
        cfg: The config.
        checkpoint: A file, or 'auto' for the newest intact one in the work directory.
        since: Ignore checkpoints of an earlier time, YYYYMMDD_HHMMSS, for 'auto'.
    """
    from mmengine.dist import is_main_process

    from gcvit_mm.engine.distributed import broadcast_from_main
    from gcvit_mm.work_dir import check_resumable, checkpoint_folder, find_resumable

    if checkpoint == 'auto':
        folder = checkpoint_folder(cfg)
        checkpoint, lines = broadcast_from_main(lambda: find_resumable(folder, since, cfg))
        start = (
            f'training resumes from {checkpoint}'
            if checkpoint
            else f'nothing to resume in {folder}: training starts from scratch'
        )
        if is_main_process():
            lines = [f'skipped: {printable(line)}' for line in lines]
            print(*lines, start, sep='\n', flush=True)
    elif '://' not in checkpoint:
        check_resumable(os.path.expanduser(checkpoint))
    if checkpoint:
        cfg.resume, cfg.load_from = True, checkpoint
        # The checkpoint has all weights.
        cfg.model.get('backbone', {}).pop('init_cfg', None)


def use_amp(cfg: Config) -> None:
    import torch

    from gcvit_mm.models.precision import half_precision

    if not torch.cuda.is_available():
        raise UserError('--amp needs a GPU: train without it on a CPU')
    dtype = half_precision()
    bf16 = dtype == torch.bfloat16
    cfg.optim_wrapper.update(
        type='GuardedAmpOptimWrapper',
        dtype=str(dtype).removeprefix('torch.'),
        # bfloat16 has the range of float32, so the loss needs no scaling.
        loss_scale=dict(enabled=False) if bf16 else 'dynamic',
    )


if __name__ == '__main__':
    run(main)

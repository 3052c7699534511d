"""Train a model of any task from a config."""

import argparse

import torch
from mmengine.runner import Runner, find_latest_checkpoint

from gcvit_mm.engine.launch import (
    add_config_arguments,
    add_run_arguments,
    load_run_config,
    prepare,
    report_bad_images,
    run,
)
from gcvit_mm.engine.preflight import check_data
from gcvit_mm.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: bfloat16 where the GPU has it'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint, by default the latest in the work folder',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_run_config(args)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    fresh = args.resume == 'auto' and not find_latest_checkpoint(cfg.work_dir)
    if args.resume and not fresh:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    prepare(cfg, exact_checkpoint=False, skip_bad_images=args.skip_bad_images)
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    runner = Runner.from_cfg(cfg)
    if fresh:
        runner.logger.info(f'Nothing to resume in {cfg.work_dir}: training starts from scratch')
    runner.train()
    if args.skip_bad_images:
        report_bad_images(cfg)


def use_amp(cfg) -> None:
    if not torch.cuda.is_available():
        raise UserError('--amp needs a GPU: leave it out, a CPU trains in float32')
    bf16 = torch.cuda.is_bf16_supported()
    cfg.optim_wrapper.update(
        type='AmpOptimWrapper',
        dtype='bfloat16' if bf16 else 'float16',
        # bfloat16 has float32's range: nothing to scale.
        loss_scale=dict(enabled=False) if bf16 else 'dynamic',
    )


if __name__ == '__main__':
    run(main)

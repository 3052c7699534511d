"""Evaluate a checkpoint of a model of any task."""

import argparse
import json
import os
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from gcvit_mm.engine.launch import add_arguments, load_config, prepare, report_bad_images, run
from gcvit_mm.engine.preflight import check_data
from gcvit_mm.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    add_arguments(parser)
    parser.add_argument(
        '--out',
        metavar='PREFIX',
        help='write the metrics to PREFIX.metrics.json, and detections in COCO format to '
        'PREFIX.bbox.json and PREFIX.segm.json',
    )
    parser.add_argument('--show-dir', metavar='DIR', help='write pictures of the predictions')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.tta:
        use_tta(cfg)
    if args.show_dir:
        show_in(cfg, os.path.abspath(args.show_dir))
    if args.out:
        args.out = args.out.removesuffix('.json')
        os.makedirs(os.path.dirname(args.out) or '.', exist_ok=True)
        cfg.test_evaluator.outfile_prefix = args.out
    prepare(cfg, exact_checkpoint=True, skip_bad_images=args.skip_bad_images)
    check_data(cfg, ('test_dataloader',))
    metrics = Runner.from_cfg(cfg).test()
    if args.out and is_main_process():
        Path(f'{args.out}.metrics.json').write_text(json.dumps(metrics, indent=1) + '\n')
    if args.skip_bad_images:
        report_bad_images(cfg)


def use_tta(cfg: Config) -> None:
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UserError('--tta: the config has no tta_model and tta_pipeline')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def show_in(cfg: Config, folder: str) -> None:
    """Each package draws by a hook of its own, and is told the folder in its own way."""
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=folder)
    elif cfg.default_scope == 'mmseg':
        hook.update(draw=True)
        cfg.visualizer.save_dir = folder
    else:
        hook.update(enable=True, out_dir=folder)


if __name__ == '__main__':
    run(main)
